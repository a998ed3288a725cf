"""Read a mesh config file; every fault becomes one line that names file, line and key."""

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import yaml
from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from orchestrator.config.fields import BASE_DIR
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError

_PACKAGE = Path(__file__).resolve().parents[1]
_HINTS = {"api_key": "API keys come from the environment variable EXPERTMESH_API_KEYS"}
_HINTS["api_keys"] = _HINTS["api_key"]


def default_config_path() -> Path:
    """The demo mesh: in `examples/demo` of a checkout, in `orchestrator/demo` once installed."""
    checkout = _PACKAGE.parent / "examples" / "demo" / "mesh.yaml"
    return checkout if checkout.is_file() else _PACKAGE / "demo" / "mesh.yaml"


def load_config(path: Path | None) -> MeshConfig:
    """The config in the YAML file `path`, or the demo mesh for None.

    Relative paths in it count from the file's folder. Raises UserError (one line) when the file
    cannot be read, is not YAML, or does not fit the schema.
    """
    path = default_config_path() if path is None else path
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            f"config file {path} does not exist", "pass the path of a YAML file"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"config file {path} cannot be read", str(error)) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        _refuse_duplicates(root, str(path))
        content = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UserError(_syntax_fault(path, error)) from error
    if content is None:
        content = {}
    if not isinstance(content, dict):
        raise UserError(f"{path}: the top level must be a mapping of sections, such as `model:`")
    # A section whose keys are all commented out reads as None; it means its defaults.
    content = {key: {} if value is None else value for key, value in content.items()}
    try:
        return MeshConfig.model_validate(content, context={BASE_DIR: path.resolve().parent})
    except ValidationError as error:
        raise UserError(_describe(path, root, error)) from error


def _syntax_fault(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    place = f"{path}:{mark.line + 1}" if mark else str(path)
    return f"{place}: not valid YAML: {getattr(error, 'problem', None) or error}"


def _refuse_duplicates(node: yaml.Node | None, place: str) -> None:
    """YAML readers silently keep the last of two equal keys; a config must not."""
    if isinstance(node, yaml.SequenceNode):
        for item in node.value:
            _refuse_duplicates(item, place)
    if not isinstance(node, yaml.MappingNode):
        return
    seen = set()
    for key, value in node.value:
        if key.value in seen:
            line = key.start_mark.line + 1
            raise UserError(f"{place}:{line}: key {key.value} is given twice", "keep one")
        seen.add(key.value)
        _refuse_duplicates(value, place)


def _describe(path: Path, root: yaml.Node | None, error: ValidationError) -> str:
    """One line for the first fault, and how many more there are."""
    faults = error.errors()
    # An unknown key is named first: it often explains the missing one.
    first = next((f for f in faults if f["type"] == "extra_forbidden"), faults[0])
    key = _dotted(first["loc"])
    line = _line_of(root, first["loc"])
    place = f"{path}:{line}" if line else str(path)
    more = f" (and {len(faults) - 1} more)" if len(faults) > 1 else ""
    return f"{place}: {_explain(key, first)}{more}"


def _explain(key: str, fault: ErrorDetails) -> str:
    name = str(fault["loc"][-1])
    match fault["type"]:
        case "extra_forbidden" if name in _HINTS:
            return f"unknown key {key}: {_HINTS[name]}"
        case "extra_forbidden":
            return f"unknown key {key}: {_suggest(fault['loc'])}"
        case "missing":
            return f"{key} is missing: add it"
        case "value_error":
            return f"{key}: {fault['ctx']['error']}"
    message = fault["msg"][0].lower() + fault["msg"][1:]
    return f"{key}: {message}, got {fault['input']!r}"


def _suggest(loc: Sequence[str | int]) -> str:
    """The nearest valid key; all of them where none is near."""
    fields = _fields_at(loc[:-1])
    near = difflib.get_close_matches(str(loc[-1]), fields, n=1, cutoff=0.6)
    if near:
        return f"did you mean {_dotted([*loc[:-1], near[0]])}?"
    return f"valid keys here are {', '.join(fields)}"


def _fields_at(loc: Sequence[str | int]) -> list[str]:
    """Keys valid in the section at `loc`, which validation has just walked."""
    kind: Any = MeshConfig
    for key in loc:
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            kind = kind.model_fields[str(key)].annotation
        else:  # a mapping name -> section
            kind = get_args(kind)[-1]
    return list(kind.model_fields)


def _dotted(loc: Sequence[str | int]) -> str:
    # Pydantic marks a fault in a mapping's key itself by "[key]", and names union members.
    return ".".join(str(part) for part in loc if part != "[key]")


def _line_of(root: yaml.Node | None, loc: Sequence[str | int]) -> int | None:
    """Line (from 1) of the deepest key on the way to `loc` that the file has."""
    node, line = root, None
    for part in loc:
        children = node.value if isinstance(node, yaml.MappingNode) else []
        found = next(((k, v) for k, v in children if k.value == str(part)), None)
        if found is None:
            break
        line = found[0].start_mark.line + 1
        node = found[1]
    return line
