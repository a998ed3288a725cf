"""Answers that nobody waits for are not kept: their slots are free again once they have come."""

import time

import pytest

from actors.dispatch.peer_links import PeerLinks
from actors.wire.body import call_body
from actors.wire.exchange import Room
from actors.wire.frame import FrameKind, Header, body_bytes
from tests.actors.dispatch.test_dispatcher import Mesh
from tests.actors.fakes import HIDDEN, StaticViews, epoch, view
from tests.actors.wire.bare_server import SECRET

WAIT_S = 60.0
HELD = [{0: list(range(8)), 1: list(range(8))}]
ROWS = 20


@pytest.mark.parametrize("transport", ["unix", "tcp"])
def test_slots_of_answers_that_nobody_waits_for(transport: str, tmp_path) -> None:
    mesh = Mesh(tmp_path, transport)
    given = view(epoch(HELD), [mesh.add(HELD[0])])
    links = PeerLinks(StaticViews(given), lambda newest: newest.shards, SECRET)
    links.connector.wait_tried(WAIT_S)
    links.refresh(time.monotonic())
    link = links.get(given.shards[0])
    slots = link.segment.shape.slots
    length = body_bytes(FrameKind.CALL, ROWS, HIDDEN, ROWS)
    for call_id in range(1, 10 * slots):
        header = Header(FrameKind.CALL, call_id, length, rows=ROWS, hidden=HIDDEN, assignments=ROWS)
        room = Room(link, header)
        body = call_body(header, room.body)
        body.row_index[:], body.experts[:], body.weights[:] = range(ROWS), 3, 1.0
        links.owe(room.post(), time.monotonic() + WAIT_S)
        links.bell.ring()
        end_s = time.monotonic() + WAIT_S
        while not link.is_idle:
            assert time.monotonic() < end_s, "its slot is not given back"
            links.refresh(time.monotonic())
            time.sleep(0.001)
    assert links.get(given.shards[0]) is link, "no larger segment was needed"
    assert link.segment.shape.slots == slots
    assert not link.segment.busy()
    assert links.losses == 0
    links.close()
    mesh.close()


def test_each_time_that_a_shard_is_late_counts_once(tmp_path) -> None:
    mesh = Mesh(tmp_path, "unix")
    given = view(epoch(HELD), [mesh.add(HELD[0])])
    links = PeerLinks(StaticViews(given), lambda newest: newest.shards, SECRET)
    links.connector.wait_tried(WAIT_S)
    links.refresh(time.monotonic())
    link = links.get(given.shards[0])
    for times in (1, 2):
        links.mark_late(link)
        links.mark_late(link)
        assert {id: told.late for id, told in links.tally.shards.items()} == {"shard-0": times}
        links.refresh(time.monotonic())  # it owes nothing, so it is not late any more
    links.close()
    mesh.close()
