"""Versions of what processes of one mesh say to each other and leave for each other.

During an upgrade processes of two versions work side by side. Where a number differs they could
not, so the change is refused before anything is touched.
"""

import platform
from collections.abc import Mapping
from importlib import metadata

from actors.wire.layout import VERSION as FRAME_VERSION
from actors.wire.segment import LAYOUT_VERSION
from orchestrator.control.journal import SCHEMA_VERSION

CONTROL_VERSION = 3
"""Of descriptions, commands, views and what gateway and engines send each other. Raise it with a
change that a process of the version before cannot take: a field that is gone, is needed, or means
something else. A field with a default is not one."""

JOURNAL = "journal schema"


def installed() -> dict[str, str]:
    """Of the code that this process has read."""
    return {
        "frame version": str(FRAME_VERSION),
        "segment layout": str(LAYOUT_VERSION),
        "control version": str(CONTROL_VERSION),
        JOURNAL: str(SCHEMA_VERSION),
        "Ray": metadata.version("ray"),
        "Python": ".".join(platform.python_version_tuple()[:2]),
    }


def why_apart(mesh: Mapping[str, str], here: Mapping[str, str]) -> list[str]:
    """Why code with the versions `here` cannot join a mesh of those; nothing if it can.

    A newer journal schema can: a journal is brought up to date when it is opened.
    """
    reasons = []
    for name, wanted in here.items():
        found = mesh.get(name, "none")
        if name == JOURNAL and found.isdigit() and int(found) <= int(wanted):
            continue
        if found != wanted:
            reasons.append(f"{name}: the mesh has {found}, what is installed has {wanted}")
    return reasons
