"""What a job and a request of it can be, and which ways lead from one to the other."""

from enum import IntEnum, StrEnum


class JobState(StrEnum):
    """OpenAI's states of a batch."""

    VALIDATING = "validating"
    IN_PROGRESS = "in_progress"
    FINALIZING = "finalizing"
    COMPLETED = "completed"
    FAILED = "failed"
    EXPIRED = "expired"
    CANCELLING = "cancelling"
    CANCELLED = "cancelled"


TRANSITIONS: frozenset[tuple[JobState, JobState]] = frozenset(
    {
        (JobState.VALIDATING, JobState.IN_PROGRESS),  # every line of the input file is well
        (JobState.VALIDATING, JobState.FAILED),  # a line is not; nothing was computed
        (JobState.VALIDATING, JobState.FINALIZING),  # its window was over before it could begin
        (JobState.VALIDATING, JobState.CANCELLING),  # its owner cancels
        (JobState.IN_PROGRESS, JobState.FINALIZING),  # all requests are answered, or time is up
        (JobState.IN_PROGRESS, JobState.CANCELLING),  # its owner cancels
        (JobState.FINALIZING, JobState.COMPLETED),  # the files are written, every request answered
        (JobState.FINALIZING, JobState.EXPIRED),  # the files are written, time was up
        (JobState.CANCELLING, JobState.CANCELLED),  # the files are written
    }
)
FINISHED = frozenset({JobState.COMPLETED, JobState.FAILED, JobState.EXPIRED, JobState.CANCELLED})
CANCELLABLE = frozenset({JobState.VALIDATING, JobState.IN_PROGRESS})


class RequestState(IntEnum):
    """Where one line of a job is."""

    PENDING = 0
    LEASED = 1
    """A runner has it until the lease expires."""
    DONE = 2
    """Its line is in the output file's rows."""
    FAILED = 3
    """Its line is in the error file's rows."""


OPEN = (RequestState.PENDING, RequestState.LEASED)


def check_transition(old: JobState, new: JobState) -> None:
    """Raises AssertionError for a way that the table does not have: a mistake of ours."""
    assert (old, new) in TRANSITIONS, f"a job does not go from {old} to {new}"
