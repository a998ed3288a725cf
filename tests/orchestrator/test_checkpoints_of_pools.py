"""Shards of a pool whose nodes have different files at the path of its own checkpoint."""

import pytest

from orchestrator.checkpoints import Checkpoint, check_shard
from orchestrator.errors import UserError

OWN = Checkpoint("the controller on a", "base")
FIRST = Checkpoint("ascend-0 on a", "base", "ascend", "int8")
PATHS = ("/models/V4", "/models/V4-W8A8")


def shard(who: str, fingerprint: str = "base", pool: str = "ascend", variant: str = "int8"):  # type: ignore[no-untyped-def]
    return Checkpoint(who, fingerprint, pool, variant)


def test_the_same_variant_on_every_node_of_a_pool_is_served() -> None:
    check_shard(shard("ascend-1 on b"), [FIRST], OWN, *PATHS)


def test_another_variant_within_a_pool_is_refused_and_both_are_named() -> None:
    with pytest.raises(UserError) as refused:
        check_shard(shard("ascend-1 on b", variant="other"), [FIRST], OWN, *PATHS)
    for said in ("/models/V4-W8A8", "ascend-0 on a has int8", "ascend-1 on b has other"):
        assert said in refused.value.message


def test_pools_may_have_different_variants_or_none() -> None:
    others = [FIRST, shard("h20-0 on c", pool="h20", variant="")]
    check_shard(shard("mlu-0 on b", pool="mlu", variant="w4a8"), others, OWN, *PATHS)


def test_another_base_than_the_controllers_is_refused() -> None:
    with pytest.raises(UserError, match="/models/V4: the controller on a has base"):
        check_shard(shard("ascend-1 on b", fingerprint="old"), [FIRST], OWN, *PATHS)


def test_a_shard_without_the_pools_variant_is_refused() -> None:
    """It was started before the config named one."""
    with pytest.raises(UserError, match="different checkpoints"):
        check_shard(shard("ascend-1 on b", variant=""), [FIRST], OWN, *PATHS)
