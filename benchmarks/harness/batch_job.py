"""A batch job through a mesh's endpoint, by OpenAI's own client."""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from openai import APIError, OpenAI

ENDPOINT = "/v1/completions"
FINISHED = ("completed", "failed", "expired", "cancelled")
LOOK_S = 0.1
SELDOM_S = 1.0
"""Between two looks while many lines are open: each takes ten milliseconds of the cores that
compute the job."""
MANY = 64
"""Lines."""


@dataclass(frozen=True, slots=True)
class Progress:
    """Of a job; answered: lines that have an answer or an error. open: that have none. again:
    requests that were computed once more after a crash."""

    status: str
    answered: int
    open: int
    failed: int
    again: int


class BatchJob:
    """One job. It can be watched through a gateway that is away at times, or comes back elsewhere:
    set `url` then."""

    def __init__(self, url: str, bodies: Sequence[Mapping[str, Any]]) -> None:
        """Submits `bodies` as lines whose `custom_id` is their number."""
        self.url = url
        self._known: tuple[str, OpenAI] | None = None
        client = self._client()
        data = "\n".join(_line(number, body) for number, body in enumerate(bodies)).encode()
        file = client.files.create(file=("in.jsonl", data), purpose="batch")
        job = client.batches.create(
            input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h"
        )
        self.id = job.id

    def _client(self) -> OpenAI:
        # Kept: making one takes tens of ms of the CPU time that is measured, ten times a second.
        if self._known is None or self._known[0] != self.url:
            made = OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)
            self._known = (self.url, made)
        return self._known[1]

    def progress(self) -> Progress | None:
        """None while nobody answers."""
        try:
            job = self._client().batches.retrieve(self.id)
        except APIError:
            return None
        counts = job.request_counts
        assert counts is not None
        again = (job.model_extra or {}).get("expertmesh", {}).get("computed_again", 0)
        answered = counts.completed + counts.failed
        return Progress(job.status, answered, counts.total - answered, counts.failed, again)

    def wait(self, answered: int, timeout_s: float) -> Progress:
        """Until so many lines have an answer, or the job has ended.

        Raises TimeoutError.
        """
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            now = self.progress()
            if now is not None and (now.answered >= answered or now.status in FINISHED):
                return now
            time.sleep(LOOK_S)
        raise TimeoutError(f"batch job {self.id}: no {answered} answers within {timeout_s:g} s")

    def wait_ended(self, timeout_s: float) -> Progress:
        """Until its files are there. Raises TimeoutError."""
        until_s = time.monotonic() + timeout_s
        while time.monotonic() < until_s:
            now = self.progress()
            if now is not None and now.status in FINISHED:
                return now
            many = now is not None and now.status == "in_progress" and now.open > MANY
            time.sleep(SELDOM_S if many else LOOK_S)
        raise TimeoutError(f"batch job {self.id} has not ended within {timeout_s:g} s")

    def lines(self) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        """What the output file and the error file hold."""
        client = self._client()
        job = client.batches.retrieve(self.id)
        files = (job.output_file_id, job.error_file_id)
        output, errors = (
            [json.loads(line) for line in client.files.content(id).text.splitlines()] if id else []
            for id in files
        )
        return output, errors


def text_of(line: Mapping[str, Any]) -> str:
    """The answer's text in a line of the output file."""
    text: str = line["response"]["body"]["choices"][0]["text"]
    return text


def _line(number: int, body: Mapping[str, Any]) -> str:
    value = {"custom_id": str(number), "method": "POST", "url": ENDPOINT, "body": dict(body)}
    return json.dumps(value)
