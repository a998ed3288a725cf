"""The one error a model directory is refused with."""


class ModelRefused(ValueError):
    """The model cannot be served; the message is one line naming the cause and the fix."""
