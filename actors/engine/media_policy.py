"""What `gateway.media` says, and which addresses are nobody's inner network."""

import ipaddress
from dataclasses import dataclass

MEDIA_VARIABLE = "EXPERTMESH_MEDIA"
"""`none`, `data`, or hosts with commas between them; `data` where it is not set."""

NONE, DATA = "none", "data"
NAT64 = ipaddress.ip_network("64:ff9b::/96")
"""IPv6 addresses of IPv4 ones, which they end with."""


@dataclass(frozen=True, slots=True)
class MediaPolicy:
    """data: whether requests may hold media themselves. hosts: that media is fetched from."""

    data: bool
    hosts: frozenset[str] = frozenset()

    def allows_host(self, host: str) -> bool:
        return host.lower() in self.hosts

    def refusal(self, what: str) -> str:
        """Why media from `what` is not taken, and what would be."""
        if not self.data:
            return f"this endpoint takes no media, so not {what} (gateway.media is none)"
        if not self.hosts:
            return f"media is taken as data: URLs only, not from {what} (gateway.media is data)"
        return f"media is fetched from listed hosts only (gateway.media), not from {what}"


def parse_policy(text: str) -> MediaPolicy:
    """Of `MEDIA_VARIABLE`'s value."""
    if text == NONE:
        return MediaPolicy(data=False)
    if text in ("", DATA):
        return MediaPolicy(data=True)
    return MediaPolicy(data=True, hosts=frozenset(host.lower() for host in text.split(",")))


def is_public(address: str) -> bool:
    """Whether an IP address is one of the Internet's; not this machine, its networks, or a group.

    An IPv6 address that stands for an IPv4 one is as public as that.
    """
    ip = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(ip, ipaddress.IPv6Address):
        inner = ip.ipv4_mapped or ip.sixtofour
        if ip in NAT64:
            inner = ipaddress.IPv4Address(int(ip) & 0xFFFF_FFFF)
        if inner is not None:
            return is_public(str(inner))
        if ip.teredo is not None:
            return False
    return ip.is_global and not ip.is_multicast
