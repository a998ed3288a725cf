"""`expertmesh batch`: submit jobs, watch them, fetch what they answered."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from orchestrator.batch.input_files import Source, open_source
from orchestrator.cli.endpoint import base_url
from orchestrator.cli.progress import ConsoleProgress
from orchestrator.config.bytesize import format_bytes
from orchestrator.errors import UserError

FINISHED = frozenset({"completed", "failed", "expired", "cancelled"})
POLL_S = 1.0
RATE_WINDOW_S = 30.0
"""The rate is that of the last so many seconds."""
SHOWN_ERRORS = 10


def submit(
    url: str,
    source: Source,
    window: str,
    priority: int,
    run_between: str | None,
    wait: bool,
    as_json: bool,
    progress: ConsoleProgress,
) -> int:
    """Upload requests and begin a job. With `wait`, returns 0 only if it completes."""
    with _client(url) as client:
        progress.step("Upload")
        with open_source(source, lambda: _model(client)) as (name, file):
            size = file.seek(0, 2)
            file.seek(0)
            uploaded = _ask(
                client,
                "POST",
                "/v1/files",
                data={"purpose": "batch"},
                files={"file": (name, file)},
            )
        progress.done(format_bytes(size))
        body = {
            "input_file_id": uploaded["id"],
            "endpoint": source.endpoint,
            "completion_window": window,
            "priority": priority,
            "run_between": run_between,
        }
        job = _ask(client, "POST", "/v1/batches", json=body)
        if wait:
            job = _wait(client, job, progress)
    _print(job, as_json)
    return 0 if not wait or job["status"] == "completed" else 1


def status(url: str, job_id: str, wait: bool, as_json: bool, progress: ConsoleProgress) -> int:
    """Show one job; with `wait`, until it is finished. Returns 1 if it failed."""
    with _client(url) as client:
        job = _ask(client, "GET", f"/v1/batches/{job_id}")
        if wait:
            job = _wait(client, job, progress)
    _print(job, as_json)
    return int(job["status"] == "failed")


def list_jobs(url: str, limit: int, as_json: bool) -> int:
    """Show the newest jobs."""
    with _client(url) as client:
        page = _ask(client, "GET", "/v1/batches", params={"limit": limit})
    if as_json:
        print(json.dumps(page["data"], indent=2))
        return 0
    table = Table("job", "state", "answered", "failed", "waits for", box=None)
    for job in page["data"]:
        counts = job["request_counts"]
        table.add_row(
            job["id"],
            job["status"],
            f"{counts['completed'] + counts['failed']}/{counts['total']}",
            str(counts["failed"]),
            job["expertmesh"]["waiting_for"] or "",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    return 0


def change(url: str, job_id: str, verb: str, as_json: bool) -> int:
    """`cancel`, `pause` or `resume` a job."""
    with _client(url) as client:
        job = _ask(client, "POST", f"/v1/batches/{job_id}/{verb}")
    _print(job, as_json)
    return 0


def results(url: str, job_id: str, output: Path | None, errors: bool) -> int:
    """Write a job's output file (or error file) to `output`, or to stdout."""
    with _client(url) as client:
        job = _ask(client, "GET", f"/v1/batches/{job_id}")
        file_id = job["error_file_id" if errors else "output_file_id"]
        if file_id is None:
            kind = "error" if errors else "output"
            raise UserError(
                f"{job_id} is {job['status']} and has no {kind} file", _hint(job, errors)
            )
        if output is None:
            for chunk in _content(client, file_id):
                sys.stdout.buffer.write(chunk)
            return 0
        part = output.with_name(output.name + ".part")
        try:
            with part.open("wb") as file:
                for chunk in _content(client, file_id):
                    file.write(chunk)
            part.replace(output)
        except OSError as error:
            raise UserError(f"{output} cannot be written: {error.strerror}") from error
        finally:
            part.unlink(missing_ok=True)
    print(f"{format_bytes(output.stat().st_size)} in {output}")
    return 0


class Rate:
    """Answers per second lately, and the time that is left at that rate."""

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._clock_s = clock_s
        self._seen: list[tuple[float, int]] = []

    def add(self, answered: int) -> float:
        """Note how many were answered by now; returns the rate, 0 while it is not known."""
        now_s = self._clock_s()
        self._seen.append((now_s, answered))
        while len(self._seen) > 2 and now_s - self._seen[1][0] > RATE_WINDOW_S:
            self._seen.pop(0)
        (first_s, first), (last_s, last) = self._seen[0], self._seen[-1]
        return (last - first) / (last_s - first_s) if last_s > first_s else 0.0


def progress_line(job: dict[str, Any], rate: float) -> str:
    """Where a job is, in a line."""
    counts, more = job["request_counts"], job["expertmesh"]
    answered = counts["completed"] + counts["failed"]
    if job["status"] == "validating":
        return f"validating: {more['checked_lines']} lines"
    parts = [f"{job['status']}: {answered}/{counts['total']}"]
    if counts["failed"]:
        parts.append(f"{counts['failed']} failed")
    if rate > 0 and job["status"] == "in_progress":
        parts.append(f"{rate:.1f}/s")
        parts.append(f"{_span((counts['total'] - answered) / rate)} left")
    if more["waiting_for"]:
        parts.append(f"waits: {more['waiting_for']}")
    return ", ".join(parts)


def _span(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"


def _wait(client: Any, job: dict[str, Any], progress: ConsoleProgress) -> dict[str, Any]:
    """Follow a job to its end. A mesh that is started again meanwhile is waited for."""
    rate = Rate()
    progress.step(f"Job {job['id']}")
    while job["status"] not in FINISHED:
        time.sleep(POLL_S)
        try:
            job = _ask(client, "GET", f"/v1/batches/{job['id']}")
        except _Unreachable as error:
            progress.update(f"{error}; still trying")
            continue
        counts = job["request_counts"]
        progress.update(progress_line(job, rate.add(counts["completed"] + counts["failed"])))
    if job["status"] == "completed":
        progress.done(progress_line(job, 0))
    else:
        progress.give_up(job["status"])
    return job


def _print(job: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(job, indent=2))
        return
    print(f"{job['id']}  {progress_line(job, 0)}")
    for name in ("input", "output", "error"):
        if job[f"{name}_file_id"]:
            print(f"  {name} file  {job[f'{name}_file_id']}")
    problems = (job["errors"] or {"data": []})["data"]
    for problem in problems[:SHOWN_ERRORS]:
        place = f"line {problem['line']}: " if problem["line"] is not None else ""
        print(f"  {place}{problem['message']}")
    if len(problems) > SHOWN_ERRORS:
        print(f"  and {len(problems) - SHOWN_ERRORS} more (--json shows all)")


def _hint(job: dict[str, Any], errors: bool) -> str:
    if job["status"] not in FINISHED:
        return "wait for it: expertmesh batch status --wait"
    return "no request failed" if errors else "look at its errors: expertmesh batch status"


class _Unreachable(UserError):
    pass


def _client(url: str) -> Any:
    import httpx

    from orchestrator.config.secrets import Secrets

    keys = Secrets().api_keys
    headers = {"Authorization": f"Bearer {keys[0].get_secret_value()}"} if keys else {}
    # An upload may take as long as it takes; a mesh that takes none of it for a minute hangs.
    return httpx.Client(base_url=base_url(url), headers=headers, timeout=60, trust_env=False)


def _ask(client: Any, method: str, path: str, **arguments: Any) -> dict[str, Any]:
    """Raises `UserError` with what the mesh says."""
    import httpx

    try:
        response = client.request(method, path, **arguments)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise _Unreachable(
            f"no mesh answers at {client.base_url}",
            "start one with `expertmesh serve`, or give --url",
        ) from error
    if response.status_code == 503:
        raise _Unreachable(f"the mesh at {client.base_url} cannot serve this now")
    return _checked(response)


def _checked(response: Any) -> dict[str, Any]:
    try:
        value = response.json()
    except ValueError:
        value = None
    if response.is_success and isinstance(value, dict):
        return value
    error = value.get("error") if isinstance(value, dict) else None
    message = error.get("message") if isinstance(error, dict) else f"status {response.status_code}"
    raise UserError(f"the mesh refused: {message}")


def _content(client: Any, file_id: str) -> Iterator[bytes]:
    with client.stream("GET", f"/v1/files/{file_id}/content") as response:
        if not response.is_success:
            response.read()
            _checked(response)
        yield from response.iter_bytes()


def _model(client: Any) -> str:
    """The model that the mesh serves."""
    return str(_ask(client, "GET", "/v1/models")["data"][0]["id"])
