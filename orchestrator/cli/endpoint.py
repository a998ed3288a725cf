"""Ask a running mesh over HTTP, for the commands that look at one."""

import httpx

from orchestrator.config.secrets import Secrets
from orchestrator.errors import UserError

TIMEOUT_S = 10.0


def base_url(url: str) -> str:
    """`url` with a scheme and without a slash at its end."""
    return (url if "://" in url else f"http://{url}").rstrip("/")


def ask(url: str, path: str) -> httpx.Response:
    """GET {url}{path}, with the first of EXPERTMESH_API_KEYS if there are any.

    Raises:
        UserError: no mesh answers there, or it wants another key.
    """
    base = base_url(url)
    keys = Secrets().api_keys
    headers = {"Authorization": f"Bearer {keys[0].get_secret_value()}"} if keys else {}
    # Without proxies from the environment: a mesh on this machine is not behind one.
    try:
        with httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client:
            response = client.get(base + path, headers=headers)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise UserError(
            f"no mesh answers at {base}", "start one with `expertmesh serve`, or give --url"
        ) from error
    if response.status_code in (401, 403):
        raise UserError(f"the mesh at {base} wants an API key", "set EXPERTMESH_API_KEYS")
    return response


def not_a_mesh(url: str, response: httpx.Response) -> UserError:
    """What to raise where the answer is not in the expected form."""
    return UserError(
        f"what answers at {base_url(url)} (status {response.status_code}) is not a mesh of this "
        "version",
        "give its address with --url",
    )
