"""`manifests/`: a base that all overlays share, and one overlay for each example. Pure.

The base has the objects that come out equal for all of the configs, which is what does not depend
on devices. An overlay has the rest. Alerts and dashboards are in neither: `dashboards/` has them,
and copies would fall behind; `expertmesh manifests render` and `k8s apply` bring them along.

`python -m orchestrator.kubernetes.kustomize manifests` writes both from
`manifests/overlays/*/mesh.yaml`; a test compares.
"""

import sys
from collections.abc import Iterable, Mapping
from pathlib import Path

from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.kubernetes.monitoring import is_copy
from orchestrator.kubernetes.naming import Object
from orchestrator.kubernetes.render import file_name, render
from orchestrator.kubernetes.yaml_text import as_yaml

HEADER = "# Made by `python -m orchestrator.kubernetes.kustomize manifests`: change mesh.yaml.\n"
SOURCE = "mesh.yaml"
KUSTOMIZATION = "kustomization.yaml"


def folder_files(objects: Iterable[Object]) -> dict[str, str]:
    """A folder that `kubectl apply -k` takes: a file for each object, and the list of them."""
    files = {file_name(item): as_yaml([item]) for item in objects}
    return {**files, KUSTOMIZATION: kustomization(list(files))}


def kustomization(resources: list[str]) -> str:
    head = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    return as_yaml([{**head, "resources": resources}])


def tree(meshes: Mapping[str, list[Object]]) -> dict[str, str]:
    """Path below `manifests/` -> text, for the objects of each overlay."""
    common = _common(list(meshes.values()))
    made = {f"base/{name}": text for name, text in folder_files(common).items()}
    for overlay, objects in meshes.items():
        own = {file_name(item): as_yaml([item]) for item in objects if item not in common}
        made |= {f"overlays/{overlay}/{name}": text for name, text in own.items()}
        listed = kustomization(["../../base", *own])
        made[f"overlays/{overlay}/{KUSTOMIZATION}"] = listed
    return {path: HEADER + text for path, text in made.items()}


def _common(meshes: list[list[Object]]) -> list[Object]:
    first, *others = meshes
    return [item for item in first if all(item in other for other in others)]


def build(folder: Path) -> dict[str, str]:
    """The tree of the overlays whose `mesh.yaml` are in `folder`."""
    sources = sorted(folder.glob(f"overlays/*/{SOURCE}"))
    return tree({source.parent.name: objects_of(load_config(source)) for source in sources})


def objects_of(config: MeshConfig) -> list[Object]:
    """What an overlay has of a mesh's objects."""
    return [item for item in render(config) if not is_copy(item)]


def write(folder: Path) -> None:
    made = build(folder)
    for old in [*folder.glob("base/*.yaml"), *folder.glob("overlays/*/*.yaml")]:
        if old.name != SOURCE and str(old.relative_to(folder)) not in made:
            old.unlink()
    for path, text in made.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
