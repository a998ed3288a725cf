"""What becomes of findings."""

import pytest

from orchestrator.errors import UserError
from orchestrator.preflight.checks import check_installation, require_ok
from orchestrator.preflight.finding import Finding, Level

GOOD = Finding("a", Level.OK, "fine")
DOUBTFUL = Finding("b", Level.WARNING, "slow", "do this")
PORT = Finding("c", Level.FAILURE, "port 1 is in use", "stop that")


def test_warnings_do_not_stop_a_mesh() -> None:
    require_ok([GOOD, DOUBTFUL])


def test_the_first_failure_does() -> None:
    with pytest.raises(UserError, match=r"^port 1 is in use: stop that$"):
        require_ok([GOOD, DOUBTFUL, PORT])
    with pytest.raises(UserError, match=r"stop that \(1 more: run `expertmesh doctor`\)$"):
        require_ok([PORT, PORT])


def test_this_installation_is_sound() -> None:
    assert [finding for finding in check_installation() if not finding.ok] == []
