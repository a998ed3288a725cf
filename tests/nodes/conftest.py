"""Three nodes, made of network namespaces."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.nodes.network import Network, why_not

NODES = 3


@pytest.fixture(scope="module")
def network() -> Iterator[Network]:
    if reason := why_not():
        pytest.skip(reason)
    # Short, because Unix sockets lie below it.
    with tempfile.TemporaryDirectory(prefix="n") as folder, Network(NODES, Path(folder)) as network:
        yield network
