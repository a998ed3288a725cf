"""A controller on another head node is found where dispatchers look for it."""

from actors.wire.address import parse_address
from orchestrator.runtime.directory_addresses import to_listen, to_tell

SOCKET = "unix:/tmp/xmesh-1/s/directory"


def test_the_first_controller_listens_where_the_config_says():
    assert to_listen([], SOCKET, "tcp:node:21000-21099") == [SOCKET, "tcp:node:21000-21099"]
    assert to_listen([], SOCKET, None) == [SOCKET]


def test_the_next_one_keeps_port_and_socket_whatever_its_machine_is():
    before = ["unix:/tmp/xmesh-0/s/directory", "tcp:10.0.0.7:21000"]
    assert to_listen(before, SOCKET, "tcp:node:0") == [before[0], "tcp:node:21000"]


def test_a_private_session_has_no_other_nodes():
    assert to_listen([SOCKET], SOCKET, None) == [SOCKET]


def test_dispatchers_are_told_the_head_nodes_name_where_it_has_one():
    listening = [parse_address(SOCKET), parse_address("tcp:10.0.0.9:21000")]
    assert to_tell(listening, None) == listening
    told = [str(address) for address in to_tell(listening, "chat-head-svc")]
    assert told == [SOCKET, "tcp:chat-head-svc:21000"]


def test_what_was_told_is_listened_to_again():
    told = ["tcp:chat-head-svc:21000"]
    assert to_listen(told, SOCKET, "tcp:node:0") == ["tcp:node:21000"]
