"""What a process was started with, told in its description: which code, and set up how.

Whoever compares it with what is installed and configured now knows whether the process is of today.
"""

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("actors", "placement", "native")
"""Whose code a shard, a router or an engine runs, besides other people's."""
DIGITS = 12


@dataclass(frozen=True, slots=True)
class Origin:
    """code: see `code_digest`. setup: digest of the part of the config it was started with."""

    code: str = ""
    setup: str = ""

    def __str__(self) -> str:
        return f"{self.code}/{self.setup}" if self.code else ""


UNKNOWN_ORIGIN = Origin()
"""Of a process whose version said nothing about it."""


@cache
def code_digest() -> str:
    """Digest of the sources below `PACKAGES`, as they were on disk when this process first asked,
    which a process does when it starts. Libraries do not count: nodes with unlike devices have
    unlike builds of torch and vLLM."""
    return digest_of(ROOT, PACKAGES)


def digest_of(root: Path, packages: Iterable[str]) -> str:
    """Hex digest; equal for the same sources, wherever they are installed."""
    digest = hashlib.sha256()
    for package in packages:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(f"{file.relative_to(root)}\0".encode())
            digest.update(file.read_bytes())
    return digest.hexdigest()[:DIGITS]
