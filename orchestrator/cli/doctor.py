"""`expertmesh doctor`: every check of the machine and of a config, with what to do about each."""

import json
from pathlib import Path

from rich.console import Console
from rich.table import Table

from orchestrator.config.load import load_config
from orchestrator.errors import UserError
from orchestrator.preflight.checks import check_config, check_installation
from orchestrator.preflight.finding import Finding, Level

_MARKS = {
    Level.OK: "[green]ok[/]",
    Level.WARNING: "[yellow]warning[/]",
    Level.FAILURE: "[red]failure[/]",
}


def examine(path: Path | None) -> list[Finding]:
    """All findings; a config that cannot be read is one of them."""
    findings = check_installation()
    try:
        config = load_config(path)
    except UserError as error:
        return [*findings, Finding("config", Level.FAILURE, error.message, error.fix)]
    return [*findings, *check_config(config)]


def doctor(path: Path | None, as_json: bool, console: Console | None = None) -> int:
    """Print all findings; returns the exit code, 2 if one of them would stop a mesh."""
    findings = examine(path)
    console = console or Console(highlight=False)
    if as_json:
        body = json.dumps([finding.as_json() for finding in findings], indent=2)
        console.print(body, markup=False, soft_wrap=True)
    else:
        console.print(render(findings))
        console.print(summary(findings))
    return 0 if all(finding.ok for finding in findings) else 2


def render(findings: list[Finding]) -> Table:
    table = Table("Check", "", "Found", box=None, pad_edge=False)
    for finding in findings:
        text = finding.message if not finding.fix else f"{finding.message}\n→ {finding.fix}"
        table.add_row(finding.name, _MARKS[finding.level], _plain(text))
    return table


def _plain(text: str) -> str:
    return text.replace("[", r"\[")


def summary(findings: list[Finding]) -> str:
    failures = sum(not finding.ok for finding in findings)
    warnings = sum(finding.level is Level.WARNING for finding in findings)
    verdict = f"{failures} to put right first" if failures else "Ready to serve"
    return f"{verdict}; warnings: {warnings}." if warnings else f"{verdict}."
