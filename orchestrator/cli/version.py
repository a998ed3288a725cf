"""`expertmesh version`."""

import platform

from orchestrator.preflight.versions import TESTED_PACKAGES, installed_version


def version_lines() -> list[str]:
    """expertmesh first, then what decides whether it runs, one a line."""
    return [
        f"expertmesh {installed_version(('expertmesh',)) or 'not installed'}",
        f"python {platform.python_version()}",
        *(
            f"{tested.package} {installed_version(tested.distributions) or 'not installed'}"
            for tested in TESTED_PACKAGES
        ),
    ]
