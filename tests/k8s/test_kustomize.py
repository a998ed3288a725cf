"""`manifests/`: up to date, and every overlay gives the objects of its mesh."""

import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from orchestrator.kubernetes.kustomize import SOURCE, build, folder_files, objects_of
from orchestrator.kubernetes.render import render
from tests.k8s.meshes import MANIFESTS, OVERLAYS, config, overlay

AGAIN = "run `python -m orchestrator.kubernetes.kustomize manifests`"


def kustomize(folder: Path) -> list[dict]:
    """What `kubectl kustomize` makes of a folder; where there is no kubectl, the listed files."""
    if shutil.which("kubectl"):
        made = subprocess.run(
            ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
        )
        assert made.returncode == 0, made.stderr
        return list(yaml.safe_load_all(made.stdout))
    return list(listed(folder))


def listed(folder: Path):
    for name in yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]:
        path = (folder / name).resolve()
        if path.is_dir():
            yield from listed(path)
        else:
            yield from yaml.safe_load_all(path.read_text())


def by_name(objects):
    return {(item["kind"], item["metadata"]["name"]): item for item in objects}


def test_the_files_are_what_the_renderer_makes():
    made = build(MANIFESTS)
    there = {
        str(file.relative_to(MANIFESTS)): file.read_text()
        for file in MANIFESTS.rglob("*.yaml")
        if file.name != SOURCE
    }
    assert there.keys() == made.keys(), AGAIN
    assert [path for path in made if there[path] != made[path]] == [], AGAIN


@pytest.mark.parametrize("name", OVERLAYS)
def test_an_overlay_gives_its_meshs_objects(name):
    wanted = by_name(objects_of(overlay(name)))
    assert by_name(kustomize(MANIFESTS / "overlays" / name)) == wanted
    assert by_name(listed(MANIFESTS / "overlays" / name)) == wanted


def test_overlays_leave_out_what_dashboards_has():
    mesh = overlay("cpu-demo")
    left_out = by_name(render(mesh)).keys() - by_name(objects_of(mesh)).keys()
    assert ("PrometheusRule", "expertmesh") in left_out
    assert all("dashboard" in name for kind, name in left_out if kind == "ConfigMap")


def test_a_rendered_folder_can_be_applied(tmp_path):
    for name, text in folder_files(render(config())).items():
        (tmp_path / name).write_text(text)
    assert by_name(kustomize(tmp_path)) == by_name(render(config()))
