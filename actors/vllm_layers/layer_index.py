"""The number of a model's layer, from the name of a module in it."""


def layer_index(name: str) -> int:
    """The one number among the dotted parts of `name`.

    Raises:
        ValueError: it has none, or several.
    """
    numbers = [part for part in name.split(".") if part.isdecimal()]
    if len(numbers) != 1:
        raise ValueError(f"the module name {name!r} has {len(numbers)} layer indices, not one")
    return int(numbers[0])
