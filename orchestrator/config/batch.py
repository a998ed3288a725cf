"""The batch jobs' part of the config."""

from typing import Annotated
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, StringConstraints

from orchestrator.config.fields import ByteSize, Count, DnsName, PositiveFloat, Seconds, Section
from orchestrator.config.times import Hours


def _check_database(url: str) -> str:
    parsed = urlsplit(url)
    if parsed.scheme not in {"postgresql", "sqlite"}:
        raise ValueError("this is no database URL: write postgresql://user@host/database")
    if parsed.password:
        raise ValueError("a password does not belong here: set PGPASSWORD or write ~/.pgpass")
    return url


def _check_hours(text: str) -> str:
    Hours.parse(text)
    return text


HoursText = Annotated[str, AfterValidator(_check_hours)]


class BatchConfig(Section):
    """Batch jobs (docs/batch.md)."""

    enabled: bool = True
    """Whether `/v1/files` and `/v1/batches` are there, and a runner."""
    database: Annotated[str, AfterValidator(_check_database)] | None = None
    """Ledger of jobs and answers: `postgresql://user@host/database`, the password in PGPASSWORD or
    ~/.pgpass; unset: a SQLite file in the mesh's state folder."""
    files: Annotated[str, StringConstraints(pattern=r"^[a-z0-9]+://")] | None = None
    """Where contents of files are: a URL that fsspec reaches (`s3://bucket/path`), with its package
    installed; unset: the mesh's state folder."""
    max_file_size: Annotated[ByteSize, Field(gt=0)] = 1 << 30
    """Largest file that may be uploaded; a larger one gets status 413."""
    max_requests: Count = 1_000_000
    """Most requests of one job."""
    max_open_jobs: Count = 100
    """Jobs that one name may have unfinished; one more gets status 429."""
    max_stored: Annotated[ByteSize, Field(gt=0)] = 100 << 30
    """Bytes of files that one name may have; an upload beyond gets status 413."""
    names: dict[DnsName, Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]] = Field(
        default_factory=dict
    )
    """Names of API keys, each with the SHA-256 of its key (`printf %s KEY | sha256sum`): files and
    jobs belong to a name, and only keys of that name see them. All other keys are `default`."""
    shares: dict[DnsName, PositiveFloat] = Field(default_factory=dict)
    """Weights of names when several have jobs: `{alice: 2}` gives alice twice what others get."""
    run_between: HoursText | None = None
    """Hours in which jobs are computed, such as `22:00-06:00` (the machine's local time); unset: at
    all times. A job may name hours of its own."""
    max_attempts: Count = 8
    """Tries of a request that fails for reasons which may pass, before it gets an error line."""
    lease_s: Seconds = 60.0
    """A request that its runner did not answer for or renew in so long is given out again."""
    min_free_disk: ByteSize = 256 << 20
    """With less room in the state folder nothing new is begun until there is more."""
