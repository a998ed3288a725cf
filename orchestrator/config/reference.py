"""The reference in `docs/configuration.md`, made from the schema.

`python -m orchestrator.config.reference docs/configuration.md` writes it below the marker line; a
test compares, so that the document cannot fall behind.
"""

import sys
from collections.abc import Iterable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from orchestrator.config.bytesize import format_bytes, parse_bytes
from orchestrator.config.schema import MeshConfig

SIZE = "size"
_NAMES: dict[Any, str] = {
    str: "text",
    int: "whole number",
    float: "number",
    bool: "`true` or `false`",
    Path: "path",
}
MARKER = "<!-- Below this line: made by `python -m orchestrator.config.reference`. -->"


def render() -> str:
    """One table per section, in the schema's order."""
    return "\n".join(_sections())


def _sections() -> Iterator[str]:
    for name, field in MeshConfig.model_fields.items():
        kind, heading = field.annotation, f"`{name}`"
        if get_origin(kind) is dict:
            kind, heading = get_args(kind)[-1], f"`{name}.NAME`"
        assert isinstance(kind, type)
        assert issubclass(kind, BaseModel)
        yield from _section(heading, kind)
        for key, inner in _named_sections(kind):
            yield from _section(f"`{name}.{key}.NAME`", inner)


def _section(heading: str, kind: type[BaseModel]) -> Iterator[str]:
    yield f"\n## {heading}\n\n{' '.join((kind.__doc__ or '').split())}\n"
    yield "| key | value | default | meaning |\n| --- | --- | --- | --- |"
    for key, value in kind.model_fields.items():
        meaning = " ".join((value.description or "").split()).replace("|", r"\|")
        yield f"| `{key}` | {_kind(value)} | {_default(value)} | {meaning} |"


def _named_sections(kind: type[BaseModel]) -> Iterator[tuple[str, type[BaseModel]]]:
    """Keys whose values are sections by name."""
    for key, field in kind.model_fields.items():
        value = (get_args(field.annotation) or (None,))[-1]
        if get_origin(field.annotation) is dict and _is_section(value):
            yield key, value


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, BaseModel)


def _kind(field: FieldInfo) -> str:
    return SIZE if _is_size(field.metadata) else _kind_of(field.annotation)


def _is_size(rules: Iterable[object]) -> bool:
    return any(getattr(rule, "func", None) is parse_bytes for rule in rules)


def _kind_of(annotation: Any) -> str:
    """What a person writes for a value of this type."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Literal or _is_enum(annotation):
        return _either(arguments or annotation)
    if origin is dict:
        return "mapping"
    if origin is list:
        return f"list of {'mappings' if _is_section(arguments[0]) else _kind_of(arguments[0])}"
    if hasattr(annotation, "__metadata__"):  # Annotated: its type and its rules
        return SIZE if _is_size(annotation.__metadata__) else _kind_of(arguments[0])
    if arguments:  # a union; None is not something to write
        return " or ".join(_kind_of(member) for member in arguments if member is not type(None))
    return _NAMES[annotation]


def _is_enum(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, StrEnum)


def _either(values: Iterable[object]) -> str:
    return " or ".join(f"`{value}`" for value in values)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "(required)"
    default = field.get_default(call_default_factory=True, validated_data={})
    if default is None:
        return "unset"
    if default in ({}, []):
        return "none"
    if isinstance(default, bool):
        return f"`{str(default).lower()}`"
    return f"`{format_bytes(default) if _kind(field) == SIZE else default}`"


def main(path: Path) -> None:
    """Replace what follows the marker in `path`."""
    head = path.read_text(encoding="utf-8").split(MARKER)[0]
    path.write_text(f"{head}{MARKER}\n{render()}\n", encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
