"""Load of one kind of traffic, as `expertmesh experts --kind` shows it."""

from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from orchestrator.cli.endpoint import ask, not_a_mesh
from orchestrator.errors import UserError

SCALE = 1_000_000
"""Shares are told with six digits."""


@dataclass(frozen=True, slots=True)
class Asked:
    """Which load is asked for."""

    kind: str
    content: str

    @classmethod
    def of(cls, kind: str, content: str) -> Self | None:
        """None: of all traffic. Raises UserError."""
        if content and not kind:
            raise UserError("--content is of one kind of traffic", "give --kind too")
        return cls(kind, content) if kind else None


def load_of(url: str, asked: Asked) -> dict[str, Any]:
    """`KindLoad.to_json`. Raises UserError: there was no such traffic, or no mesh answers."""
    query = {"kind": asked.kind} | ({"content": asked.content} if asked.content else {})
    response = ask(url, f"/api/v1/load?{urlencode(query)}")
    try:
        body = response.json()
    except ValueError as error:
        raise not_a_mesh(url, response) from error
    if response.status_code != HTTPStatus.OK:
        raise UserError(str(body["error"]["message"]))
    if "shares" not in body:
        raise UserError("this mesh does not tell kinds of traffic apart", "upgrade it")
    return dict(body)


def by_layer(load: dict[str, Any]) -> dict[int, NDArray[np.int64]]:
    """[E] of each layer, in millionths of the layer's load."""
    shares = (np.rint(SCALE * np.array(row)).astype(np.int64) for row in load["shares"])
    return dict(zip(load["layers"], shares, strict=True))
