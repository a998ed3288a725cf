"""What the controller keeps of the load by kind of traffic."""

import numpy as np
import pytest

from actors.dispatch.traffic_counts import TrafficKey, TrafficWindow
from actors.traffic import FORGET_S, MAX_KINDS, OTHER
from orchestrator.expert_load import TrafficTokens
from orchestrator.traffic_load import HALF_LIFE_S, TrafficLoad

LAYERS, EXPERTS = (2, 3), 4


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def window(kind: str, expert: int, tokens: int = 10, content: str = "text") -> TrafficWindow:
    counts = np.zeros((1, len(LAYERS), EXPERTS), np.int64)
    counts[0, 0, expert] = tokens
    return TrafficWindow(LAYERS, (TrafficKey(kind, content),), np.array([tokens]), counts)


def load_of(clock: Clock, kinds: tuple[str, ...] = ()) -> TrafficLoad:
    return TrafficLoad("tiny", LAYERS, EXPERTS, kinds, clock)


def test_kinds_have_shares_of_their_own() -> None:
    load = load_of(Clock())
    load.add(window("code", 0))
    load.add(window("chat", 1, 30))
    load.add(window("chat", 2, 10, "image"))
    code, chat = load.of("code", None), load.of("chat", None)
    image = load.of("chat", "image")
    assert code is not None
    assert chat is not None
    assert image is not None
    assert code.shares.tolist() == [[1, 0, 0, 0], [0, 0, 0, 0]]
    assert chat.shares.tolist() == [[0, 0.75, 0.25, 0], [0, 0, 0, 0]]
    assert image.shares.tolist() == [[0, 0, 1, 0], [0, 0, 0, 0]]
    assert (code.tokens, chat.tokens, image.tokens) == (10, 40, 10)
    assert load.tokens == (
        TrafficTokens("chat", "image", 10),
        TrafficTokens("chat", "text", 30),
        TrafficTokens("code", "text", 10),
    )
    assert load.of("code", "image") is None
    assert load.of("none", None) is None
    told = image.to_json()
    assert (told["kind"], told["content"], told["layers"]) == ("chat", "image", [2, 3])
    assert told["shares"][0] == [0, 0, 1, 0]


def test_older_load_counts_for_less() -> None:
    load = load_of(clock := Clock())
    load.add(window("code", 0))
    clock.now_s = HALF_LIFE_S
    load.add(window("code", 1))
    found = load.of("code", None)
    assert found is not None
    assert found.shares[0] == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert found.tokens == 20, "tokens only grow"
    clock.now_s = 3 * HALF_LIFE_S
    later = load.of("code", None)
    assert later is not None
    assert later.shares[0] == pytest.approx([1 / 3, 2 / 3, 0, 0])
    assert later.load[0] == pytest.approx([1.25, 2.5, 0, 0])


def test_kinds_are_bounded_and_forgotten() -> None:
    load = load_of(clock := Clock())
    for n in range(MAX_KINDS + 4):
        load.add(window(f"k{n}", 0))
    assert len(load.tokens) == MAX_KINDS + 1
    other = load.of(OTHER, None)
    assert other is not None
    assert other.tokens == 40
    clock.now_s = FORGET_S + 1
    load.add(window("new", 0))
    assert load.of("k0", None) is None
    assert load.of("new", None) is not None
    assert len(load.tokens) == MAX_KINDS + 1


def test_named_kinds_alone_have_a_place() -> None:
    load = load_of(Clock(), ("chat",))
    load.add(window("code", 0))
    load.add(window("chat", 0))
    assert [told.kind for told in load.tokens] == ["chat", OTHER]


def test_load_of_another_model_is_refused() -> None:
    load = load_of(Clock())
    wrong = TrafficWindow((2, 3), (TrafficKey("a"),), np.array([1]), np.zeros((1, 2, 5), np.int64))
    with pytest.raises(ValueError, match="load by kind of traffic"):
        load.add(wrong)
    assert load.tokens == ()
