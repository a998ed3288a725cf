"""Clients cannot overtake each other."""

import json

from orchestrator.gateway.priority import without_priority


def test_only_the_field_itself_is_taken_out():
    body = {"prompt": "a priority ☃", "priority": -1, "n": 1}
    assert json.loads(without_priority(json.dumps(body).encode())) == {
        "prompt": "a priority ☃",
        "n": 1,
    }


def test_a_name_in_escapes_is_the_same_name():
    assert json.loads(without_priority(rb'{"\u0070riority": -1, "n": 1}')) == {"n": 1}


def test_other_bodies_stay_as_they_are():
    nested = b'{"prompt": "priority",  "x": {"priority": 1}}'
    for body in (b"", b"{", b'{"a":  1}', b'["priority"]', nested, b'{"priority": '):
        assert without_priority(body) == body
