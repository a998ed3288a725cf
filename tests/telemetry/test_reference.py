"""The documented metrics are the real ones."""

from pathlib import Path

from orchestrator.telemetry.reference import with_table

DOCUMENT = Path(__file__).parents[2] / "docs" / "observability.md"


def test_the_documented_table_is_the_table():
    document = DOCUMENT.read_text()
    assert document == with_table(document), (
        "run `python -m orchestrator.telemetry.reference docs/observability.md`"
    )
