"""Write a mesh's Kubernetes objects; tell checkpoints apart."""

import sys
from pathlib import Path

from orchestrator.config.load import load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.errors import UserError
from orchestrator.kubernetes.kustomize import folder_files
from orchestrator.kubernetes.naming import Object
from orchestrator.kubernetes.render import render
from orchestrator.kubernetes.yaml_text import as_yaml


def show(path: Path | None, output: Path | None) -> int:
    """Print the objects, or write a file for each and a kustomization. Raises UserError."""
    objects = objects_of(load_config(path))
    if output is None:
        sys.stdout.write(as_yaml(objects))
        return 0
    try:
        output.mkdir(parents=True, exist_ok=True)
        for name, text in folder_files(objects).items():
            (output / name).write_text(text, encoding="utf-8")
    except OSError as error:
        where = error.filename or output
        raise UserError(f"{where} cannot be written", str(error.strerror)) from error
    print(f"{len(objects)} objects in {output}: kubectl apply -k {output}")
    return 0


def objects_of(config: MeshConfig) -> list[Object]:
    """All objects. The checkpoint's fingerprint is that of `model.path` where the config names none
    and the checkpoint is here. Raises UserError."""
    settings, here = config.kubernetes, config.model.path / "config.json"
    if settings.model_claim and settings.model_fingerprint is None and here.is_file():
        mark = fingerprint_of(config.model.path)
        settings = settings.model_copy(update={"model_fingerprint": mark})
        config = config.model_copy(update={"kubernetes": settings})
    return render(config)


def show_fingerprint(folder: Path, expect: str | None) -> int:
    """Print it. Raises UserError where it is not the expected one."""
    found = fingerprint_of(folder)
    if expect is not None and found != expect:
        raise UserError(
            f"the checkpoint in {folder} is {found}, not {expect}",
            "put the right one there, or correct kubernetes.model_fingerprint",
        )
    print(found)
    return 0


def fingerprint_of(folder: Path) -> str:
    from actors.experts.fingerprint import fingerprint

    try:
        return fingerprint(folder)
    except OSError as error:
        raise UserError(
            f"no checkpoint can be read in {folder} ({error.strerror})",
            "name the folder that holds config.json",
        ) from error
