"""Takes `priority` out of clients' requests: vLLM would obey it, and it is the mesh's to give.

Online requests have vLLM's priority 0 and batch requests a later one; a client that sets its own
would overtake the others.
"""

import json

FIELD = "priority"


def without_priority(body: bytes) -> bytes:
    """The body without that field; one that has none, or is not JSON, as it is."""
    if FIELD.encode() not in body and b"\\u" not in body:
        return body  # nearly all: nothing is parsed, as no name in it can be the field's
    try:
        value = json.loads(body)
    except ValueError:
        return body  # the engine says what is wrong with it
    if not isinstance(value, dict) or FIELD not in value:
        return body
    del value[FIELD]
    return json.dumps(value).encode()
