"""What vLLM's sources say of Mixture-of-Experts models, read without importing them."""

import ast
import importlib.util
from collections.abc import Iterator
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


def registered() -> dict[str, str]:
    """Architecture -> module below vllm, of every entry of vLLM's registry."""
    registry = vllm_folder() / "model_executor" / "models" / "registry.py"
    found = {}
    for node in ast.walk(ast.parse(registry.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                match key, value:
                    case (
                        ast.Constant(value=str(name)),
                        ast.Tuple(elts=[ast.Constant(value=str(module)), ast.Constant()]),
                    ):
                        found[name] = _full(module)
    return found


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
