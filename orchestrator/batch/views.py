"""Files and jobs in OpenAI's form."""

from typing import Any

from orchestrator.batch.pages import Page
from orchestrator.batch.records import FileRecord, JobRecord

EXTENSION = "expertmesh"
"""Field of a batch for what OpenAI's form has no place for; clients that do not know it ignore
it."""

_TIMES = (
    "in_progress_at",
    "finalizing_at",
    "completed_at",
    "failed_at",
    "expired_at",
    "cancelling_at",
    "cancelled_at",
)


def file_view(file: FileRecord) -> dict[str, Any]:
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.bytes,
        "created_at": int(file.created_at),
        "expires_at": _whole(file.expires_at),
        "filename": file.filename,
        "purpose": file.purpose,
        "status": "processed",
        "status_details": None,
    }


def job_view(job: JobRecord, model: str) -> dict[str, Any]:
    errors = [error.to_json() for error in job.errors]
    return {
        "id": job.id,
        "object": "batch",
        "endpoint": job.endpoint,
        "model": model,
        "errors": {"object": "list", "data": errors} if errors else None,
        "input_file_id": job.input_file,
        "completion_window": job.completion_window,
        "status": job.status,
        "output_file_id": job.output_file,
        "error_file_id": job.error_file,
        "created_at": int(job.created_at),
        "expires_at": int(job.expires_at),
        **{name: _whole(getattr(job, name)) for name in _TIMES},
        "request_counts": {"total": job.total, "completed": job.completed, "failed": job.failed},
        "usage": {
            "input_tokens": job.prompt_tokens,
            "input_tokens_details": {"cached_tokens": 0},
            "output_tokens": job.completion_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": job.prompt_tokens + job.completion_tokens,
        },
        "metadata": dict(job.metadata) or None,
        EXTENSION: {
            "priority": job.priority,
            "run_between": job.run_between,
            "paused": job.paused,
            "waiting_for": job.pause_reason or None,
            "computed_again": job.recomputed,
            "checked_lines": job.checked_lines,
        },
    }


def page_view(page: Page[Any], items: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "object": "list",
        "data": items,
        "has_more": page.has_more,
        "first_id": items[0]["id"] if items else None,
        "last_id": items[-1]["id"] if items else None,
    }


def _whole(seconds: float | None) -> int | None:
    return None if seconds is None else int(seconds)
