"""Which transport reaches an address."""

from collections.abc import Callable

from actors.wire.address import Address
from actors.wire.bell import Bell
from actors.wire.device_memory import DeviceMemory
from actors.wire.link import ClientLink
from actors.wire.shared_link import open_shared_link
from actors.wire.stream_link import open_stream_link

Opening = Callable[[Address, bytes, Bell, DeviceMemory | None], ClientLink]

TRANSPORTS: dict[str, Opening] = {
    "unix": open_shared_link,
    "tcp": open_stream_link,
}
"""By scheme of the address. Each connects and returns after WELCOME; see `open_link`."""


def open_link(
    address: Address, secret: bytes, bell: Bell, device: DeviceMemory | None = None
) -> ClientLink:
    """Connect; blocks for at most `CONNECT_TIMEOUT_S` for each step of the greeting.

    secret: of the mesh. bell: of this client, one for all its links. device: where its rows are,
    if they need not go through the host.

    Raises:
        OSError: nobody listens, or no WELCOME came in time.
        HandshakeError: wrong peer or wrong secret.
    """
    return TRANSPORTS[address.scheme](address, secret, bell, device)
