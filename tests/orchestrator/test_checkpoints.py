"""Nodes with different files at the same path."""

import pytest

from orchestrator.checkpoints import check_same
from orchestrator.errors import UserError


def test_nodes_must_have_the_same_checkpoint() -> None:
    check_same("/m", [])
    check_same("/m", [("controller on box", "aa"), ("h20-0 on rack-2", "aa")])
    with pytest.raises(UserError) as refused:
        check_same("/m", [("controller on box", "aa"), ("a on box", "aa"), ("b on rack", "bb")])
    assert str(refused.value) == (
        "the nodes have different checkpoints at /m: controller on box has aa, b on rack has bb: "
        "copy the same files to every node"
    )
