"""What batch jobs cost beside what engines do: accepting a large job, and the ledger's part.

    python -m benchmarks.batch [--lines 1000000] [--quick] [--json FILE]

First a job of so many lines, from its file to its first leased request, by the runner's own code in
a process of its own: times to store and validate it and to lease, and that process's peak memory.
Then what leasing and writing answers take for each request, in groups as the runner makes them. No
engine takes part, so the figures hold for any model.
"""

import argparse
import json
import multiprocessing
import resource
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from multiprocessing.connection import Connection
from pathlib import Path

from benchmarks.harness.report import Report, Target, run_benchmark
from orchestrator.batch.bodies import read_bodies
from orchestrator.batch.content import LocalStore
from orchestrator.batch.database import sqlite_url
from orchestrator.batch.ledger import Ledger, open_ledger
from orchestrator.batch.long_work import advanced
from orchestrator.batch.records import FileRecord, JobRecord, NewJob, Settled
from orchestrator.batch.validation import Limits, add_stretch, read_stretch

ENDPOINT = "/v1/chat/completions"
MODEL = "demo"
GROUP = 32
"""Requests leased and answers written in one transaction."""
ANSWER_BYTES = 1000
LEDGER_REQUESTS = 20_000
MIB = 1 << 20
PEAK_GOAL_MIB = 300.0


@dataclass(frozen=True, slots=True)
class Accepted:
    """A job from its file to its first lease."""

    lines: int
    file_mib: float
    store_s: float
    validate_s: float
    validate_cpu_s: float
    first_lease_s: float
    peak_mib: float


@dataclass(frozen=True, slots=True)
class Written:
    """Leasing, reading and answering requests."""

    requests: int
    lease_us: float
    settle_us: float
    lease_cpu_us: float
    settle_cpu_us: float


def lines(count: int) -> Iterator[bytes]:
    for number in range(count):
        text = f"Question {number}: what follows from the one before it? " * 4
        body = {"model": MODEL, "messages": [{"role": "user", "content": text}], "max_tokens": 64}
        value = {"custom_id": f"request-{number}", "method": "POST", "url": ENDPOINT, "body": body}
        yield json.dumps(value).encode() + b"\n"


def accept(folder: Path, count: int) -> Accepted:
    ledger, store = open_ledger(sqlite_url(folder / "ledger.sqlite"), False), LocalStore(folder)
    began_s = time.perf_counter()
    with store.spool() as spool:
        for line in lines(count):
            spool.write(line)
        digest = spool.seal()
        store.put(spool, digest)
        file = FileRecord("file-1", "me", "in.jsonl", "batch", spool.bytes, digest, 0.0)
        ledger.files.add(file, store.has)
    stored_s = time.perf_counter()
    job, term = begin(ledger, file)
    cpu_s = time.process_time()
    limits = Limits(count, MIB)
    last = False
    while not last:
        stretch = read_stretch(store.local(digest), job, MODEL, limits)
        assert not stretch.errors
        assert not add_stretch(ledger.requests, term, job, stretch)
        job, last = advanced(job, stretch), stretch.last
    ledger.requests.start(term, job, 0.0)
    validated_s, cpu_s = time.perf_counter(), time.process_time() - cpu_s
    leased = ledger.requests.lease(term, job.seq, GROUP, 0.0, 1e12)
    assert len(read_bodies(store.local(digest), leased)) == GROUP
    leased_s = time.perf_counter()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return Accepted(
        count,
        file.bytes / MIB,
        stored_s - began_s,
        validated_s - stored_s,
        cpu_s,
        leased_s - validated_s,
        peak / MIB,
    )


def begin(ledger: Ledger, file: FileRecord) -> tuple[JobRecord, int]:
    job = ledger.jobs.create(NewJob("me", ENDPOINT, file.id, "24h", 1e12, {}), 0.0)
    assert job is not None
    return job, ledger.requests.begin(0.0)


def write(folder: Path, count: int) -> Written:
    """Lease and answer `count` requests of the job that `accept` left in `folder`."""
    ledger, store = open_ledger(sqlite_url(folder / "ledger.sqlite"), False), LocalStore(folder)
    (job,) = ledger.jobs.unfinished()
    term = ledger.requests.begin(0.0)
    file = ledger.files.get(job.input_file)
    assert file is not None
    path = store.local(file.digest)
    took = [0.0] * 4
    done = 0
    while done < count:
        before = (time.perf_counter(), time.process_time())
        leased = ledger.requests.lease(term, job.seq, GROUP, 0.0, 1e12)
        read_bodies(path, leased)
        between = (time.perf_counter(), time.process_time())
        answer = b"x" * ANSWER_BYTES
        answers = [Settled(job.seq, r.line, True, answer, 10, 10) for r in leased]
        ledger.requests.settle(term, answers, [])
        after = (time.perf_counter(), time.process_time())
        for kind in (0, 1):
            took[2 * kind] += between[kind] - before[kind]
            took[2 * kind + 1] += after[kind] - between[kind]
        done += len(leased)
    return Written(done, *(seconds / done * 1e6 for seconds in took))


def apart(work: object, *arguments: object) -> object:
    """What `work` returns, called in a process of its own."""
    context = multiprocessing.get_context("spawn")
    receiving, sending = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(sending, work, *arguments))
    process.start()
    sending.close()
    result = receiving.recv()
    process.join()
    return result


def _send(connection: Connection, work, *arguments) -> None:  # type: ignore[no-untyped-def]
    connection.send(work(*arguments))


def options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--lines", type=int, default=1_000_000, help="of the large job")


def measure(arguments: argparse.Namespace) -> Report:
    count = 20_000 if arguments.quick else arguments.lines
    with tempfile.TemporaryDirectory() as folder:
        accepted = apart(accept, Path(folder), count)
        written = apart(write, Path(folder), min(count, LEDGER_REQUESTS))
    return Report(
        "batch",
        [asdict(accepted), asdict(written)],
        [Target("peak memory", accepted.peak_mib, PEAK_GOAL_MIB, "max", "MiB")],
        [f"answers of {ANSWER_BYTES} bytes, {GROUP} in a transaction; cpu: of this process alone"],
    )


if __name__ == "__main__":
    run_benchmark(__doc__ or "", measure, options)
