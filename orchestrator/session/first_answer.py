"""Requests through the endpoint before it is said to be ready, so that a client's first one is not
the first to take that way: HTTP proxy, gateway, Ray's streams to the engine."""

import logging
from contextlib import suppress

import httpx

log = logging.getLogger(__name__)

PROMPT = "What comes in first is slow."
TOKENS = 16
TIMEOUT_S = 20.0
REPEATS = 2


def ask_first(url: str, model: str, key: str | None) -> None:
    """Whole and streamed, a few times. A mesh that does not answer says why when it is asked; here
    that is only logged."""
    headers = {"authorization": f"Bearer {key}"} if key else {}
    body = {"model": model, "prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0}
    with httpx.Client(headers=headers, timeout=TIMEOUT_S, trust_env=False) as client:
        for stream in (False, True) * REPEATS:
            with suppress(httpx.HTTPError):
                answer = client.post(f"{url}/v1/completions", json={**body, "stream": stream})
                if not answer.is_success:
                    log.warning("the first answer has status %d", answer.status_code)
