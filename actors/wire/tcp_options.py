"""Options of TCP sockets, the same on both ends.

A connection on which nothing is said is probed, so that each end learns within seconds that the
other machine lost its power or its cable, and firewalls do not forget the connection. While calls
are on their way their deadlines tell that, and retransmissions are left to the system: its own
limit for them also ends connections to a peer that is well and computes for long, because such a
peer acknowledges but takes in no data.
"""

import socket

KEEPALIVE_IDLE_S = 2
"""Probing begins after so long without a byte."""
KEEPALIVE_INTERVAL_S = 1
KEEPALIVE_PROBES = 3
"""So many probes without an answer end the connection: 5 s after the last byte."""


def set_tcp_options(sock: socket.socket) -> None:
    """No waiting for more data to send, and keep-alive.

    Raises:
        OSError: the connection is gone.
    """
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_INTERVAL_S)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, KEEPALIVE_PROBES)
