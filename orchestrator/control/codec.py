"""The journal's JSON: one text per part of the intent, read back into the same values."""

from dataclasses import fields
from functools import lru_cache
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from orchestrator.control.state import Intent

PARTS = tuple(field.name for field in fields(Intent))


@lru_cache
def _adapter(part: str) -> TypeAdapter[Any]:
    return TypeAdapter(get_type_hints(Intent)[part])


def part_to_json(part: str, value: object) -> str:
    return _adapter(part).dump_json(value).decode()


def part_from_json(part: str, text: str) -> Any:
    """Raises:
    ValueError: the text is no such part; says which field.
    """
    if part not in PARTS:
        raise ValueError(f"unknown part {part!r}")
    try:
        return _adapter(part).validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{part}.{where}: {first['msg']}") from None
