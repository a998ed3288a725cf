"""What vLLM's sources say of Mixture-of-Experts models, read without importing them."""

import ast
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FACTORY = "FusedMoEFactory"
BASE = "RoutedExperts"


def vllm_folder() -> Path:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    return Path(found.origin).parent


def files() -> Iterator[tuple[Path, str]]:
    for folder in ("model_executor/models", "models"):
        for file in sorted((vllm_folder() / folder).rglob("*.py")):
            yield file, file.read_text(encoding="utf-8")


def modules_with_experts() -> set[str]:
    """Modules, below vllm, that build routed experts themselves."""
    return {
        ".".join(file.relative_to(vllm_folder()).with_suffix("").parts)
        for file, text in files()
        if f"{FACTORY}(" in text
    }


@dataclass(frozen=True, slots=True)
class Entry:
    """Of vLLM's registry. table: its variable, such as `_TEXT_GENERATION_MODELS`; module: below
    vllm."""

    table: str
    module: str


def registered() -> dict[str, Entry]:
    """By architecture."""
    registry = vllm_folder() / "model_executor" / "models" / "registry.py"
    found = {}
    for node in ast.parse(registry.read_text(encoding="utf-8")).body:
        match node:
            case (
                ast.Assign(targets=[ast.Name(id=table)], value=ast.Dict() as models)
                | ast.AnnAssign(target=ast.Name(id=table), value=ast.Dict() as models)
            ):
                found |= {name: Entry(table, module) for name, module in _models(models)}
    return found


def _models(table: ast.Dict) -> Iterator[tuple[str, str]]:
    for key, value in zip(table.keys, table.values, strict=True):
        match key, value:
            case (
                ast.Constant(value=str(name)),
                ast.Tuple(elts=[ast.Constant(value=str(module)), ast.Constant()]),
            ):
                yield name, _full(module)


def _full(module: str) -> str:
    if module.startswith("vllm."):
        return module.removeprefix("vllm.")
    return f"model_executor.models.{module}"


def subclasses() -> dict[str, set[str]]:
    """Class -> names of what it defines, of every direct subclass of `RoutedExperts`."""
    found = {}
    for _, text in files():
        if f"({BASE})" not in text:
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.ClassDef) and BASE in {
                base.id for base in node.bases if isinstance(base, ast.Name)
            }:
                found[node.name] = {
                    one.name for one in node.body if isinstance(one, ast.FunctionDef)
                }
    return found
