"""Ask a running mesh over HTTP, for the commands that look at one and change it."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError

TIMEOUT_S = 10.0
VERB_TIMEOUT_S = 150.0
"""A verb is answered when it is planned."""

M = TypeVar("M", bound=BaseModel)


class RefusedError(Exception):
    """The mesh says no; the message is its reason."""


def base_url(url: str) -> str:
    """`url` with a scheme and without a slash at its end."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def ask(url: str, path: str, key: str | None = None) -> httpx.Response:
    """GET {url}{path}; key: default: the first of EXPERTMESH_API_KEYS if there are any.

    Raises:
        UserError: no mesh answers there, or it wants another key.
    """
    base = base_url(url)
    with _client(base, TIMEOUT_S, reading_key() if key is None else key) as client:
        response = client.get(base + path)
    if response.status_code in (401, 403):
        if key is not None:
            raise UserError(_message(response.json()))
        raise UserError(f"the mesh at {base} wants an API key", "set EXPERTMESH_API_KEYS")
    return response


def fetch(url: str, path: str, key: str | None = None) -> dict[str, Any]:
    """The JSON object at that path; key: as `ask` takes it.

    Raises:
        UserError: no mesh answers there, or it cannot say.
    """
    response = ask(url, path, key)
    try:
        body = response.json()
    except ValueError as error:
        raise not_a_mesh(url, response) from error
    if response.status_code == HTTPStatus.SERVICE_UNAVAILABLE:
        raise UserError(f"the mesh at {base_url(url)} cannot say: {_message(body)}")
    if response.status_code != HTTPStatus.OK or not isinstance(body, dict):
        raise not_a_mesh(url, response)
    return body


def fetch_model(url: str, path: str, model: type[M]) -> tuple[M, float]:
    """The answer in that form, and how old it is in seconds. Raises UserError."""
    body = fetch(url, path)
    stale_s = float(body.pop("stale_s", 0.0))
    try:
        return model.model_validate(body), stale_s
    except ValidationError as error:
        raise UserError(
            f"what answers at {base_url(url)} is a mesh of another version",
            "use the version of expertmesh that started it",
        ) from error


def change(url: str, verb: str, body: dict[str, Any], key: str) -> dict[str, Any]:
    """POST {url}/api/v1/{verb}.

    Raises:
        RefusedError: the mesh says no.
        UserError: no mesh answers, it wants another key, or does not understand.
    """
    base = base_url(url)
    with _client(base, VERB_TIMEOUT_S, key) as client:
        response = client.post(f"{base}/api/v1/{verb}", json=body)
    try:
        said = response.json()
    except ValueError as error:
        raise not_a_mesh(url, response) from error
    match response.status_code:
        case HTTPStatus.OK:
            return dict(said)
        case HTTPStatus.CONFLICT:
            raise RefusedError(_message(said))
        case HTTPStatus.UNAUTHORIZED | HTTPStatus.FORBIDDEN:
            fix = "set EXPERTMESH_ADMIN_KEYS here too, or give --key-file"
            raise UserError(_message(said), "" if "EXPERTMESH" in _message(said) else fix)
        case HTTPStatus.NOT_FOUND | HTTPStatus.METHOD_NOT_ALLOWED:
            raise not_a_mesh(url, response)
        case _:
            raise UserError(_message(said))


def follow(url: str, after: int) -> AbstractContextManager[httpx.Response]:
    """The stream of events after that number. Raises UserError."""
    return stream(url, f"/api/v1/events?follow=true&after={after}", reading_key())


@contextmanager
def stream(url: str, path: str, key: str) -> Iterator[httpx.Response]:
    """What is sent at that path as it comes. Raises UserError."""
    base = base_url(url)
    with (
        _client(base, TIMEOUT_S * 3, key) as client,
        client.stream("GET", base + path) as response,
    ):
        if response.status_code != HTTPStatus.OK:
            response.read()
            if response.status_code in (401, 403, 429):
                raise UserError(_message(response.json()))
            raise not_a_mesh(url, response)
        yield response


def reading_key() -> str:
    """The first of EXPERTMESH_API_KEYS, else of EXPERTMESH_ADMIN_KEYS; empty without either."""
    secrets = Secrets()
    keys = secrets.api_keys or secrets.admin_keys
    return keys[0].get_secret_value() if keys else ""


def admin_key(file: Path | None) -> str:
    """From that file, or the first of EXPERTMESH_ADMIN_KEYS, or else what is used for reading.

    Raises:
        UserError: the file cannot be read or is empty.
    """
    if file is None:
        keys = Secrets().admin_keys
        return keys[0].get_secret_value() if keys else reading_key()
    try:
        key = file.read_text().strip()
    except OSError as error:
        raise UserError(f"key file {file} cannot be read", str(error.strerror)) from error
    except UnicodeDecodeError as error:
        raise UserError(f"key file {file} is no text", "write one key into it") from error
    if not key or len(key.split()) != 1:
        raise UserError(f"key file {file} holds no key", "write one key into it, and nothing else")
    return key


@contextmanager
def _client(base: str, timeout_s: float, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    # Without proxies from the environment: a mesh on this machine is not behind one.
    try:
        with httpx.Client(timeout=timeout_s, trust_env=False, headers=headers) as client:
            yield client
    except httpx.ReadTimeout as error:
        raise UserError(f"the mesh at {base} did not answer in time", "try again") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"no mesh answers at {base}", "start one with `expertmesh serve`, or give --url"
        ) from error


def _message(body: Any) -> str:
    try:
        return str(body["error"]["message"])
    except (KeyError, TypeError):
        return "no reason is given"


def not_a_mesh(url: str, response: httpx.Response) -> UserError:
    """What to raise where the answer is not in the expected form."""
    return UserError(
        f"what answers at {base_url(url)} (status {response.status_code}) is not a mesh of this "
        "version",
        "give its address with --url",
    )
