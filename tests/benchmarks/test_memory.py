"""What the memory benchmark would notice."""

from dataclasses import replace

import pytest

from benchmarks.memory import Sizes, targets_of

GOOD = Sizes(
    whole=2750.0, engine=1850.0, large=675.0 + 245.0, small=225.0 + 230.0, empty=210.0,
    loaded_large=675.0 + 215.0, loaded_small=225.0 + 215.0, experts=900.0,
)  # fmt: skip


def missed(sizes: Sizes) -> list[str]:
    return [target.name for target in targets_of(sizes) if not target.met]


def test_weights_held_once_meet_all_goals() -> None:
    assert missed(GOOD) == []


@pytest.mark.parametrize(
    ("change", "name"),
    [
        ({"loaded_large": 3 * 675.0 + 215.0, "loaded_small": 3 * 225.0 + 215.0}, "what further"),
        ({"loaded_large": 1.05 * 675.0 + 215, "loaded_small": 1.05 * 225.0 + 215}, "what further"),
        ({"large": 2 * 675.0 + 215.0}, "serving calls"),
        ({"large": 920.0 + 30.0}, "serving calls"),
        ({"empty": 280.0}, "a shard without experts"),
        ({"engine": 2100.0}, "engine and 2 shards"),
        ({"engine": 2750.0}, "what the engine shrinks by"),
    ],
    ids=[
        "weights thrice",
        "5 % besides",
        "copied when used",
        "scratch",
        "constant",
        "engine",
        "engine holds experts",
    ],
)
def test_what_is_held_too_much_is_named(change: dict[str, float], name: str) -> None:
    assert any(target.startswith(name) for target in missed(replace(GOOD, **change)))
