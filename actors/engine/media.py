"""Which images, audio and video of requests an engine takes: vLLM's fetching, with our policy.

vLLM alone fetches what any client names, follows redirects away from the domains it was given, and
asks no address whether it is private. Here a URL's host has to be listed, as has every host that it
redirects to, and the addresses that its name resolves to have to be public. It is those very
addresses that are connected to: a name that resolves otherwise a moment later gains nothing.
Proxies of the environment are not used, since they would resolve names themselves.
"""

import asyncio
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import Any
from urllib.parse import urljoin, urlsplit

import aiohttp
from aiohttp.abc import AbstractResolver, ResolveResult
from vllm import envs
from vllm.connections import HTTPConnection
from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY, MediaConnector
from vllm.multimodal.media.base import MediaIO

from actors.engine.media_policy import MEDIA_VARIABLE, MediaPolicy, is_public, parse_policy

CONNECTOR = "expertmesh"
MOST_REDIRECTS = 3

IsPublic = Callable[[str], bool]


class MediaRefused(ValueError):
    """A request names media that this mesh does not take; vLLM answers with status 400."""


class PublicResolver(AbstractResolver):
    """Resolves names to public addresses or to none."""

    def __init__(self, public: IsPublic) -> None:
        self._inner = aiohttp.ThreadedResolver()
        self._public = public

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        for one in found:
            if not self._public(one["host"]):
                raise MediaRefused(f"media is not fetched from {host}: its address is private")
        return found

    async def close(self) -> None:
        await self._inner.close()


class MediaFetcher:
    """Fetches from listed hosts. Makes a session for each fetch: there are few, and pooled
    connections would outlive what was checked."""

    def __init__(self, policy: MediaPolicy, public: IsPublic = is_public) -> None:
        self._policy = policy
        self._public = public

    async def fetch(self, url: str, timeout_s: float | None, max_bytes: int | None) -> bytes:
        """Raises `MediaRefused`, or what `aiohttp` raises where the host does not answer."""
        connector = aiohttp.TCPConnector(resolver=PublicResolver(self._public))
        limit = aiohttp.ClientTimeout(total=timeout_s)
        async with aiohttp.ClientSession(connector=connector, timeout=limit) as session:
            for _ in range(MOST_REDIRECTS + 1):
                self._check(url)
                async with session.get(url, allow_redirects=False) as answer:
                    if answer.status not in (301, 302, 303, 307, 308):
                        answer.raise_for_status()
                        return await _read(answer, max_bytes)
                    url = urljoin(url, answer.headers.get("location", ""))
        raise MediaRefused(f"media is not fetched over more than {MOST_REDIRECTS} redirects")

    def _check(self, url: str) -> None:
        parts = urlsplit(url)
        host = (parts.hostname or "").lower()
        if parts.scheme not in ("http", "https") or not self._policy.allows_host(host):
            raise MediaRefused(self._policy.refusal(host or url[:64]))
        try:
            ipaddress.ip_address(host)
        except ValueError:
            return  # a name: the resolver looks at its addresses
        if not self._public(host):
            raise MediaRefused(f"media is not fetched from {host}: the address is private")


async def _read(answer: aiohttp.ClientResponse, max_bytes: int | None) -> bytes:
    """The body, of `max_bytes` and of vLLM's own limit for downloads at most."""
    limits = [max_bytes, envs.VLLM_MAX_MEDIA_DOWNLOAD_SIZE_MB << 20]
    limit = min(one for one in limits if one)
    body = bytearray()
    async for chunk in answer.content.iter_chunked(64 << 10):
        body += chunk
        if len(body) > limit:
            raise MediaRefused(f"media from {answer.url.host} has more than {limit} bytes")
    return bytes(body)


class MeshMediaConnector(MediaConnector):
    """vLLM's connector, for what the policy allows."""

    def __init__(
        self,
        media_io_kwargs: dict[str, dict[str, Any]] | None = None,
        connection: HTTPConnection | None = None,
        **others: Any,
    ) -> None:
        del connection, others  # ours, and no local files
        super().__init__(media_io_kwargs)
        self._policy = parse_policy(os.environ.get(MEDIA_VARIABLE, ""))
        self._fetcher = MediaFetcher(self._policy)

    def load_from_url(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        if _is_data(url):
            self._check_data()
            return super().load_from_url(url, media_io)
        return asyncio.run(self.load_from_url_async(url, media_io, fetch_timeout=fetch_timeout))

    async def load_from_url_async(
        self, url: str, media_io: MediaIO[Any], *, fetch_timeout: int | None = None
    ) -> Any:
        if _is_data(url):
            self._check_data()
            return await super().load_from_url_async(url, media_io)
        data = await self._fetcher.fetch(url, fetch_timeout, media_io.get_max_bytes())
        return await asyncio.to_thread(media_io.load_bytes, data)

    def _check_data(self) -> None:
        if not self._policy.data:
            raise MediaRefused(self._policy.refusal("a data URL"))


def _is_data(url: str) -> bool:
    return url[:5].lower() == "data:"


def use_mesh_media() -> None:
    """From now on vLLM of this process takes media by the policy in the environment."""
    MEDIA_CONNECTOR_REGISTRY.register(CONNECTOR)(MeshMediaConnector)
    os.environ["VLLM_MEDIA_CONNECTOR"] = CONNECTOR
    assert envs.VLLM_MEDIA_CONNECTOR == CONNECTOR
