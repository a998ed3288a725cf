"""The one error a model directory is refused with."""


class ModelRefused(ValueError):  # noqa: N818  a verdict, named as users read it
    """The model cannot be served; the message is one line naming the cause and the fix."""
