"""Which media a request may name: policies, addresses, and real fetches from real servers."""

import asyncio
import base64
import io
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from actors.engine.media_policy import MEDIA_VARIABLE, is_public, parse_policy

pytest.importorskip("vllm", reason="media is fetched by vLLM's connector")

from aiohttp import web
from PIL import Image

from tests.checkpoints.aria import make_aria

PRIVATE = (
    "127.0.0.1", "127.8.8.8", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
    "100.64.0.1", "0.0.0.0", "224.0.0.1", "255.255.255.255", "::1", "::", "fe80::1%eth0",
    "fd00::1", "ff02::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1",
    "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
)  # fmt: skip
PUBLIC = ("8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808")


@pytest.mark.parametrize("address", PRIVATE)
def test_addresses_of_machines_and_networks_are_private(address):
    assert not is_public(address)


@pytest.mark.parametrize("address", PUBLIC)
def test_addresses_of_the_internet_are_public(address):
    assert is_public(address)


def picture() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (4, 3), "red").save(stream, "PNG")
    return stream.getvalue()


@asynccontextmanager
async def server(answers: dict[str, Callable[[], web.Response]]) -> AsyncIterator[tuple[str, list]]:
    """(address with port, paths that were asked for) of a web server of this machine."""
    asked: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        asked.append(request.path)
        return answers[request.path]()

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"localhost:{runner.addresses[0][1]}", asked
    finally:
        await runner.cleanup()


def fetched(url_of, answers, hosts="localhost", public=is_public):
    """(what came, paths that were asked for); url_of: of the server's address."""
    from actors.engine.media import MediaFetcher

    async def run():
        async with server(answers) as (address, asked):
            fetcher = MediaFetcher(parse_policy(hosts), public)
            try:
                return await fetcher.fetch(url_of(address), 10.0, 1 << 20), asked
            except ValueError as error:
                return str(error), asked

    return asyncio.run(run())


def anywhere(_address: str) -> bool:
    return True


ONE = {"/a.png": lambda: web.Response(body=b"bytes")}


def test_a_listed_host_is_fetched_from():
    came, asked = fetched(lambda at: f"http://{at}/a.png", ONE, public=anywhere)
    assert (came, asked) == (b"bytes", ["/a.png"])


@pytest.mark.parametrize("name", ["localhost", "LOCALHOST", "127.0.0.1"])
def test_a_listed_name_of_a_private_address_is_not(name):
    came, asked = fetched(
        lambda at: f"http://{at.replace('localhost', name)}/a.png", ONE, "localhost,127.0.0.1"
    )
    assert "private" in came
    assert asked == []


def test_a_body_that_is_too_large_is_not_read_to_its_end():
    answers = {"/large": lambda: web.Response(body=bytes((1 << 20) + 1))}
    came, _ = fetched(lambda at: f"http://{at}/large", answers, public=anywhere)
    assert came == "media from localhost has more than 1048576 bytes"


def test_a_host_that_is_not_listed_is_not_looked_up():
    came, asked = fetched(lambda at: f"http://{at}/a.png", ONE, "images.example.com")
    assert came == "media is fetched from listed hosts only (gateway.media), not from localhost"
    assert asked == []


def test_redirects_lead_to_listed_hosts_only():
    answers = ONE | {
        "/here": lambda: web.Response(status=302, headers={"location": "/a.png"}),
        "/there": lambda: web.Response(status=307, headers={"location": "http://127.0.0.1/a.png"}),
        "/loop": lambda: web.Response(status=301, headers={"location": "/loop"}),
        "/file": lambda: web.Response(status=302, headers={"location": "file:///etc/passwd"}),
    }
    assert fetched(lambda at: f"http://{at}/here", answers, public=anywhere) == (
        b"bytes",
        ["/here", "/a.png"],
    )
    for path, said in [
        ("/there", "not from 127.0.0.1"),
        ("/loop", "3 redirects"),
        ("/file", "not"),
    ]:
        came, _ = fetched(lambda at, path=path: f"http://{at}{path}", answers, public=anywhere)
        assert said in came


@pytest.fixture
def connector(monkeypatch):
    """vLLM's registered connector under a policy."""

    def made(policy: str):
        from vllm import envs
        from vllm.multimodal.media import MEDIA_CONNECTOR_REGISTRY

        from actors.engine.media import use_mesh_media

        monkeypatch.setenv("VLLM_MEDIA_CONNECTOR", "http")
        monkeypatch.setenv(MEDIA_VARIABLE, policy)
        use_mesh_media()
        return MEDIA_CONNECTOR_REGISTRY.load(
            envs.VLLM_MEDIA_CONNECTOR,
            media_io_kwargs=None,
            allowed_local_media_path="/",
            allowed_media_domains=None,
        )

    return made


DATA_URL = "data:image/png;base64," + base64.b64encode(picture()).decode()


def test_data_urls_are_taken_unless_the_policy_is_none(connector):
    image = asyncio.run(connector("data").fetch_image_async(DATA_URL))
    assert image.media.size == (4, 3) if hasattr(image, "media") else image.size == (4, 3)
    with pytest.raises(ValueError, match=r"takes no media.*gateway\.media is none"):
        asyncio.run(connector("none").fetch_image_async(DATA_URL))


@pytest.mark.parametrize("url", ["http://images.example.com/a.png", "file:///etc/hostname"])
def test_nothing_else_is_taken_by_default(connector, url):
    with pytest.raises(ValueError, match=r"data: URLs only.*gateway\.media is data"):
        asyncio.run(connector("data").fetch_image_async(url))
    with pytest.raises(ValueError, match="data: URLs only"):
        connector("data").fetch_image(url)


@pytest.fixture(scope="module")
def chat_model(tmp_path_factory):
    """vLLM's configuration of a model that takes pictures."""
    from vllm.config import ModelConfig

    return ModelConfig(model=str(make_aria(tmp_path_factory.mktemp("model"), seed=0)))


def chat_with(model, url):
    """What vLLM makes of a chat request with the picture at `url`: (the turn's parts, pictures)."""
    from vllm.renderers.chat_utils import parse_chat_messages_async

    words = [{"type": "text", "text": "What is"}, {"type": "image_url", "image_url": {"url": url}}]
    messages = [{"role": "user", "content": words}]
    (turn,), data, _ = asyncio.run(parse_chat_messages_async(messages, model, "openai"))
    return [part["type"] for part in turn["content"]], data["image"]


def test_pictures_of_chat_requests_are_taken_by_the_policy(connector, chat_model):
    """vLLM's own reading of a request, which asks its registry for whom to fetch by."""
    connector("images.example.com")
    parts, (image,) = chat_with(chat_model, DATA_URL)
    assert parts == ["text", "image"]
    assert getattr(image, "media", image).size == (4, 3)
    with pytest.raises(ValueError, match=r"listed hosts only.*not from elsewhere\.example\.com"):
        chat_with(chat_model, "http://elsewhere.example.com/a.png")
