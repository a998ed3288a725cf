"""The options of `expertmesh batch ...`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from orchestrator.cli.options import DEFAULT_URL, Json, Url, Verbose
from orchestrator.errors import UserError

if TYPE_CHECKING:
    from orchestrator.cli.progress import ConsoleProgress

app = typer.Typer(help="Jobs of many requests, each answered exactly once.", no_args_is_help=True)

Job = Annotated[str, typer.Argument(metavar="JOB", help="Id of the job: batch_...")]
Wait = Annotated[bool, typer.Option("--wait", help="Until it is finished, showing how far it is.")]


@app.command("submit")
def submit_command(
    file: Annotated[str, typer.Argument(help="JSONL or Parquet: a path, a URL, or - for stdin.")],
    url: Url = DEFAULT_URL,
    wait: Wait = False,
    window: Annotated[str, typer.Option(help="Time it may take: 1h to 7d.")] = "24h",
    priority: Annotated[int, typer.Option(help="Of your jobs higher ones come first.")] = 0,
    between: Annotated[
        str | None, typer.Option(help="Hours to compute it in: 22:00-06:00.")
    ] = None,
    endpoint: Annotated[str, typer.Option(help="Route of its requests.")] = "/v1/chat/completions",
    prompt_column: Annotated[
        str | None, typer.Option(help="Make a request of each row: the column with its prompt.")
    ] = None,
    template: Annotated[
        str | None, typer.Option(help="The same with a prompt such as 'Translate: {text}'.")
    ] = None,
    body: Annotated[
        str, typer.Option(help="More fields of such requests, as JSON: '{\"max_tokens\": 64}'.")
    ] = "{}",
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Upload requests and begin a job."""
    import json

    from orchestrator.batch.input_files import Source
    from orchestrator.cli.batch import submit

    try:
        fields = json.loads(body)
    except ValueError as error:
        raise UserError(f"--body is not JSON: {error}") from error
    if not isinstance(fields, dict):
        raise UserError("--body must be a JSON object")
    source = Source(file, endpoint, prompt_column, template, fields)
    with _progress() as progress:
        code = submit(url, source, window, priority, between, wait, as_json, progress)
    raise typer.Exit(code)


@app.command("status")
def status_command(
    job: Job,
    url: Url = DEFAULT_URL,
    wait: Wait = False,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show how far a job is."""
    from orchestrator.cli.batch import status

    with _progress() as progress:
        raise typer.Exit(status(url, job, wait, as_json, progress))


@app.command("list")
def list_command(
    url: Url = DEFAULT_URL,
    limit: Annotated[int, typer.Option(help="Newest so many.", min=1, max=100)] = 20,
    as_json: Json = False,
    _verbose: Verbose = False,
) -> None:
    """Show your jobs."""
    from orchestrator.cli.batch import list_jobs

    raise typer.Exit(list_jobs(url, limit, as_json))


@app.command("results")
def results_command(
    job: Job,
    url: Url = DEFAULT_URL,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write.", show_default="stdout")
    ] = None,
    errors: Annotated[bool, typer.Option("--errors", help="The error file instead.")] = False,
    _verbose: Verbose = False,
) -> None:
    """Fetch the answers of a finished job."""
    from orchestrator.cli.batch import results

    raise typer.Exit(results(url, job, output, errors))


@app.command("cancel")
def cancel_command(
    job: Job, url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False
) -> None:
    """End a job; what is answered is kept."""
    _change(url, job, "cancel", as_json)


@app.command("pause")
def pause_command(
    job: Job, url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False
) -> None:
    """Begin no more requests of a job."""
    _change(url, job, "pause", as_json)


@app.command("resume")
def resume_command(
    job: Job, url: Url = DEFAULT_URL, as_json: Json = False, _verbose: Verbose = False
) -> None:
    """Go on with a paused job."""
    _change(url, job, "resume", as_json)


def _change(url: str, job: str, verb: str, as_json: bool) -> None:
    from orchestrator.cli.batch import change

    raise typer.Exit(change(url, job, verb, as_json))


def _progress() -> "ConsoleProgress":
    from rich.console import Console

    from orchestrator.cli.progress import ConsoleProgress

    # stdout is for the answer, which may be JSON.
    return ConsoleProgress(Console(stderr=True, highlight=False))
