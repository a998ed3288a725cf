"""Counts by kind of traffic from the worker's thread to a message."""

import threading

import numpy as np
import pytest

from actors.dispatch.traffic_counts import MAX_KEYS, TrafficCounts, TrafficKey, TrafficWindow
from actors.dispatch.view_messages import FROM_SUBSCRIBER, TrafficHead
from actors.traffic import OTHER
from actors.wire.frame import FrameError
from actors.wire.messages import PREFIX, pack, read_head

CODE, IMAGE = TrafficKey("code"), TrafficKey("code", "image")


def one(value: int) -> np.ndarray:
    return np.full((1, 2, 4), value, np.int64)


def test_what_was_added_is_taken_once() -> None:
    counts = TrafficCounts([3, 5], 4)
    counts.add([IMAGE], np.array([2]), one(2))
    counts.add([CODE], np.array([1]), one(1))
    counts.add([IMAGE], np.array([3]), one(3))
    window = counts.take()
    assert window is not None
    assert (window.layers, window.keys) == ((3, 5), (IMAGE, CODE))
    assert window.tokens.tolist() == [5, 1]
    assert window.counts.tolist() == np.concatenate([one(5), one(1)]).tolist()
    assert counts.take() is None


def test_keys_are_bounded() -> None:
    counts = TrafficCounts([0], 1)
    keys = [TrafficKey(f"k{n}") for n in range(MAX_KEYS + 5)]
    ones = np.ones(len(keys), np.int64)
    counts.add(keys, ones, ones.reshape(-1, 1, 1))
    window = counts.take()
    assert window is not None
    assert len(window.keys) == MAX_KEYS + 1
    assert window.tokens[window.keys.index(TrafficKey(OTHER))] == 5
    head, _ = TrafficHead.of(window)
    assert len(head.keys) == MAX_KEYS + 1, "it fits its message"


def test_nothing_is_lost_between_two_threads() -> None:
    counts, added, taken = TrafficCounts([0, 1], 4), 300, 0

    def add() -> None:
        for _ in range(added):
            counts.add([CODE], np.array([1]), one(1))

    thread = threading.Thread(target=add)
    thread.start()
    while thread.is_alive() or taken < added:
        if (window := counts.take()) is not None:
            taken += int(window.tokens.sum())
            assert (window.counts == window.tokens.sum()).all()
    assert taken == added


def window_of(counts: np.ndarray) -> TrafficWindow:
    return TrafficWindow((3, 5), (CODE,), np.array([7]), counts)


def sent(window: TrafficWindow) -> tuple[TrafficHead, bytes]:
    data = pack(*TrafficHead.of(window))
    head, _ = PREFIX.unpack(data[: PREFIX.size])
    said = read_head(FROM_SUBSCRIBER, data[PREFIX.size : PREFIX.size + head])
    assert isinstance(said, TrafficHead)
    return said, data[PREFIX.size + head :]


def test_a_window_goes_through_a_message() -> None:
    said, body = sent(window_of(one(9)))
    window = said.window(body)
    assert (window.layers, window.keys, window.tokens.tolist()) == ((3, 5), (CODE,), [7])
    assert window.counts.tolist() == one(9).tolist()


def test_counts_too_large_for_the_message_are_the_largest() -> None:
    said, body = sent(window_of(one(1 << 40)))
    assert (said.window(body).counts == 2**31 - 1).all()


@pytest.mark.parametrize("shape", [(2, 2, 4), (1, 3, 4), (8,)])
def test_other_counts_than_the_head_says_are_refused(shape: tuple[int, ...]) -> None:
    said, body = sent(window_of(np.zeros(shape, np.int64)))
    with pytest.raises(FrameError, match="traffic message"):
        said.window(body)
