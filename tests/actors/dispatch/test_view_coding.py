"""Views arrive as they were sent, whole or as what differs, and nonsense is refused."""

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actors.dispatch.mesh_view import MeshView, Peer
from actors.dispatch.view_coding import decode_view, encode_view
from actors.wire.frame import IN_BODY, RowCoding
from actors.wire.messages import PREFIX, lengths
from tests.actors.dispatch.views import (
    EDITS,
    content,
    decoded,
    next_view,
    random_epoch,
    random_view,
)

seeds = st.integers(0, 2**32 - 1)


@settings(deadline=None)
@given(seeds, st.integers(1, 5))
def test_a_whole_view_arrives_as_it_was(seed: int, shards: int) -> None:
    view = random_view(np.random.default_rng(seed), shards=shards)
    assert content(decoded(encode_view(view))) == content(view)


@settings(deadline=None)
@given(seeds)
def test_differences_give_what_the_whole_view_gives(seed: int) -> None:
    random = np.random.default_rng(seed)
    sent = random_view(random)
    received = decoded(encode_view(sent))
    for _ in range(8):
        new = next_view(random, sent)
        if random.random() < 0.3:  # a slow subscriber skips some
            new = next_view(random, new)
        received = decoded(encode_view(new, sent), received)
        assert content(received) == content(decoded(encode_view(new))) == content(new)
        sent = new


@pytest.mark.parametrize("edit", EDITS)
def test_each_kind_of_edit(edit: Callable[..., MeshView]) -> None:
    for seed in range(20):
        random = np.random.default_rng(seed)
        base = random_view(random)
        new = edit(random, base)
        assert content(decoded(encode_view(new, base), base)) == content(new)


@pytest.mark.parametrize("coding", IN_BODY)
def test_the_coding_of_rows_arrives(coding: RowCoding) -> None:
    view = replace(random_view(np.random.default_rng(0)), rows_between_nodes=coding)
    assert decoded(encode_view(view)).rows_between_nodes is coding
    other = replace(view, rows_between_nodes=RowCoding(1 - coding))
    assert decoded(encode_view(other, view), view).rows_between_nodes is other.rows_between_nodes


def large_view(shards: int = 64) -> MeshView:
    random = np.random.default_rng(1)
    epoch = random_epoch(random, shards, num_experts=128, layers=8)
    small = random_view(random, shards=shards)
    return replace(small, epoch=epoch)


def test_new_weights_are_a_small_message_and_build_nothing() -> None:
    view = large_view()
    slow = replace(view.shards[5], weight=0.25)
    new = replace(view, shards=(*view.shards[:5], slow, *view.shards[6:]))
    message = encode_view(new, view)
    assert len(message) < 3000 < len(encode_view(new)) / 100
    received = decoded(message, view)
    assert received.epoch is view.epoch
    assert received.table is view.table
    assert received.cost[5].tolist() == (4 * view_cost(slow)).tolist()


def view_cost(peer: Peer) -> np.ndarray:
    return np.array([peer.cost.call_s, peer.cost.read_s, peer.cost.row_s])


def test_a_moved_expert_is_a_small_message() -> None:
    view = large_view()
    experts = view.epoch.experts.copy()
    experts[3, 7] = np.roll(experts[3, 7], 1)
    new = replace(view, epoch=replace(view.epoch, number=2, experts=experts))
    assert len(encode_view(new, view)) < 5000
    assert content(decoded(encode_view(new, view), view)) == content(new)


# -- what is refused


def parts(message: bytes) -> tuple[dict[str, Any], bytes]:
    head, _ = lengths(message[: PREFIX.size])
    text = message[PREFIX.size :]
    return json.loads(text[:head]), text[head:]


def test_differences_need_their_base() -> None:
    random = np.random.default_rng(3)
    first = random_view(random)
    second = next_view(random, first)
    head, body = parts(encode_view(next_view(random, second), second))
    for base in (None, first):
        with pytest.raises(ValueError, match="builds on"):
            decode_view(json.dumps(head).encode(), body, base)


WHOLE = encode_view(random_view(np.random.default_rng(4)))
BASE = random_view(np.random.default_rng(4))
PAIRS = encode_view(EDITS[6](np.random.default_rng(5), BASE), BASE)


def edited(message: bytes, path: str, value: Any) -> tuple[bytes, bytes]:
    head, body = parts(message)
    *where, last = [int(key) if key.isdecimal() else key for key in path.split(".")]
    inner: Any = head
    for key in where:
        inner = inner[key]
    inner[last] = value
    return json.dumps(head).encode(), body


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("kind", "gossip", "kind"),
        ("schema_version", 3, "schema_version"),
        ("version", [1], "version"),
        ("version", [-1, 1], "version"),
        ("settings.mesh", None, "mesh"),
        ("settings.call_deadline_s", -1.0, "call_deadline_s"),
        ("settings.call_deadline_s", "soon", "call_deadline_s"),
        ("settings.rows_between_nodes", "FP4", "rows_between_nodes"),
        ("settings.rows_between_nodes", "DEVICE", "rows_between_nodes"),
        ("settings.device_ipc", None, "device_ipc"),
        ("shards", None, "leaves out its peers"),
        ("routers", None, "leaves out its peers"),
        ("shards.order", None, "leaves out the order"),
        ("shards.order", ["shard-1-0"], "for 1 shards"),
        ("shards.order", ["who", "shard-1-1", "shard-1-2", "shard-1-3"], "names peers"),
        ("shards.order", ["shard-1-1", "shard-1-1", "shard-1-2", "shard-1-3"], "same id"),
        ("shards.changed.0.addresses", ["smoke:signals"], "smoke:signals"),
        ("shards.changed.0.weight", -1.0, "weight"),
        ("shards.changed.0.weight", float("nan"), "weight"),
        ("shards.changed.0.cost", [0.0, 0.0, 0.0], "cost"),
        ("shards.changed.0.incarnation", 2**64, "incarnation"),
        ("epoch", None, "leaves out its plan epoch"),
        ("epoch.shape", [2**40, 4, 2**40], "of shape"),
        ("epoch.shape", [3, 5, 6], "of shape"),
        ("epoch.shape", [3, 4, 99], "of shape"),
        ("epoch.num_experts", 2**40, "do not hold"),
        ("epoch.num_experts", 100, "do not hold"),
        ("epoch.num_experts", 5, "must lie in"),
        ("epoch.num_experts", 7, "no slot"),
        ("epoch.layers", [1, 2], "layers"),
        ("epoch.layers", [1, 3, 2], "ascending"),
        ("epoch.whole", False, "other arrays"),
        ("arrays.0.dtype", "float64", "do not fit"),
        ("arrays", [], "do not fit"),
    ],
)
def test_a_malformed_whole_view_is_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_view(*edited(WHOLE, path, value))


@pytest.mark.parametrize(
    ("path", "value", "complaint"),
    [
        ("epoch.layers", [1, 2], "no base with its layers"),
        ("epoch.num_experts", 5, "no base with its layers"),
        ("epoch.shape", [4, *BASE.epoch.experts.shape[1:]], ", not "),
        ("epoch.shape", [*BASE.epoch.experts.shape[:2], 2**40], "of shape"),
        ("epoch.whole", True, "other arrays"),
        ("epoch", None, "no base with these shards"),
    ],
)
def test_malformed_differences_are_refused(path: str, value: Any, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        decode_view(*edited(PAIRS, path, value), BASE)


@pytest.mark.parametrize("index", [-1, 10**6, 2**31 - 1])
def test_an_index_beyond_the_plan_is_refused(index: int) -> None:
    head, body = parts(PAIRS)
    body = np.int32(index).tobytes() + body[4:]
    with pytest.raises(ValueError, match="beyond"):
        decode_view(json.dumps(head).encode(), body, BASE)


def test_indices_and_values_go_together() -> None:
    head, body = parts(PAIRS)
    indices, values = head["arrays"][:2]
    size = indices["shape"][0]
    indices["shape"], values["shape"] = [size + 1], [size - 1]
    with pytest.raises(ValueError, match="indices for"):
        decode_view(json.dumps(head).encode(), body, BASE)


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([WHOLE, PAIRS]), st.data())
def test_flipped_bytes_end_in_a_view_or_a_value_error(message: bytes, data: st.DataObject) -> None:
    head, _ = lengths(message[: PREFIX.size])
    text = bytearray(message[PREFIX.size :])
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ValueError):
        decode_view(bytes(text[:head]), bytes(text[head:]), BASE)
