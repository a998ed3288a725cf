"""Objects as YAML that people read: texts of several lines as blocks."""

from collections.abc import Iterable
from typing import Any

import yaml

from orchestrator.kubernetes.naming import Object

WIDTH = 100


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _text)


def as_yaml(objects: Iterable[Object]) -> str:
    """One document for each."""
    return yaml.dump_all(objects, Dumper=_Dumper, sort_keys=False, width=WIDTH, explicit_start=True)
