"""Orders requests so that those with the same beginning come one after the other.

An engine keeps the KV entries of prompts it has seen and finds the longest beginning that a new
prompt shares with them. What is computed next should share as much as possible with what was
computed last, before that is evicted. A request's key is made of four hashes of growing beginnings
of its prompt, so sorting by it groups by the first 256 characters, within that by the first 1,024,
and so on.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

STRETCHES = (256, 1024, 4096, 16384)
"""Lengths in characters; a token has about four."""
_HASH_BYTES = 4
KEY_BYTES = _HASH_BYTES * len(STRETCHES)


def prefix_key(body: Mapping[str, Any]) -> bytes:
    """16 bytes for the body of a chat or text completion."""
    text = _prompt_text(body)
    return b"".join(
        hashlib.blake2b(text[:n].encode("utf-8", "surrogatepass"), digest_size=_HASH_BYTES).digest()
        for n in STRETCHES
    )


def _prompt_text(body: Mapping[str, Any]) -> str:
    prompt = body["messages"] if "messages" in body else body.get("prompt", "")
    # Tools stand before the messages in most chat templates.
    tools = json.dumps(body["tools"]) if body.get("tools") else ""
    return tools + (prompt if isinstance(prompt, str) else json.dumps(prompt))
