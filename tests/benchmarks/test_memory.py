"""What the memory benchmark would notice."""

import pytest

from benchmarks.memory import Sizes, targets_of

GOOD = Sizes(whole=2750.0, engine=1850.0, shards=900.0 + 2 * 220.0, empty=220.0, experts=900.0)


def missed(sizes: Sizes) -> list[str]:
    return [target.name for target in targets_of(sizes, 2) if not target.met]


def test_weights_held_once_meet_all_goals() -> None:
    assert missed(GOOD) == []


@pytest.mark.parametrize(
    ("sizes", "name"),
    [
        (Sizes(2750.0, 1850.0, 3 * 900.0 + 2 * 220.0, 220.0, 900.0), "what shards with experts"),
        (Sizes(2750.0, 1850.0, 900.0 + 2 * 220.0 + 45.0, 220.0, 900.0), "what shards with experts"),
        (Sizes(2750.0, 1850.0, 900.0 + 2 * 280.0, 280.0, 900.0), "a shard without experts"),
        (Sizes(2750.0, 2100.0, 900.0 + 2 * 220.0, 220.0, 900.0), "engine and 2 shards"),
        (Sizes(2750.0, 2750.0, 900.0 + 2 * 220.0, 220.0, 900.0), "what the engine shrinks by"),
    ],
    ids=["weights three times", "5 % kept besides", "constant", "engine", "engine holds experts"],
)
def test_what_is_held_too_much_is_named(sizes: Sizes, name: str) -> None:
    assert any(target.startswith(name) for target in missed(sizes))
