"""Servers take the first free port of a range."""

import socket

import pytest

from actors.wire.address import listen, parse_address
from actors.wire.ports import parse_ports


def free_range(length: int) -> range:
    """Neighbouring ports nobody listens on at this moment."""
    while True:
        with socket.create_server(("127.0.0.1", 0)) as probe:
            first = probe.getsockname()[1]
        try:
            taken = [socket.create_server(("127.0.0.1", first + n)) for n in range(length)]
        except OSError:
            continue
        for sock in taken:
            sock.close()
        return range(first, first + length)


def test_each_server_takes_the_next_port_and_the_last_is_told_which_are_taken():
    ports = free_range(2)
    address = parse_address(f"tcp:127.0.0.1:{ports[0]}-{ports[-1]}")
    first, at = listen(address)
    second, beside = listen(address)
    try:
        assert [at.port, beside.port] == list(ports)
        assert str(at) == f"tcp:127.0.0.1:{ports[0]}"
        with pytest.raises(OSError, match=f"every port of {ports[0]}-{ports[-1]} is taken"):
            listen(address)
    finally:
        first.close()
        second.close()


def test_an_address_with_a_range_reads_as_it_is_written():
    assert str(parse_address("tcp:node:21000-21099")) == "tcp:node:21000-21099"
    assert parse_address("tcp:node:0").ports == range(1)


@pytest.mark.parametrize("text", ["", "x", "2-1", "0-5", "1-70000", "-5", "1-", "1-2-3"])
def test_what_is_no_range_is_refused(text):
    with pytest.raises(ValueError, match="range of ports"):
        parse_ports(text)
    with pytest.raises(ValueError, match="neither"):
        parse_address(f"tcp:node:{text}")
