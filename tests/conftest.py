"""For all tests: one seed for everything random, and nothing may be left behind at the end."""

import os
import signal
from collections.abc import Generator, Iterator
from getpass import getuser
from tempfile import gettempdir

import pytest

from tests import seeds
from tests.leaks import LeakCheck

# One thread for torch here: on a busy machine several wait for each other at every tiny operation
# (140 s against 18 s for the kernels' tests with a load of 10). Shards and engines set their own.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# What torch compiled in an earlier run stays where torch keeps it if nothing is said.
os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", f"{gettempdir()}/torchinductor_{getuser()}")

LEAKS = pytest.StashKey[LeakCheck]()


def pytest_addoption(parser: pytest.Parser) -> None:
    seeds.add_option(parser)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    seeds.configure(config)


def pytest_report_header(config: pytest.Config) -> str:
    return f"seed: {seeds.seed_of(config)}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    failed = terminalreporter.stats.get("failed") or terminalreporter.stats.get("error")
    if failed:
        terminalreporter.line(f"sampled with --seed {seeds.seed_of(terminalreporter.config)}")


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    session.config.stash[LEAKS] = LeakCheck()
    signal.signal(signal.SIGTERM, _end_in_order)


def _end_in_order(number: int, _frame: object) -> None:
    """A run that is asked to end (by `timeout`, or a CI job's limit) ends what it started first."""
    pytest.exit(f"ended by signal {number}", returncode=128 + number)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    seeds.seed_everything(item.config, item.nodeid)
    done = yield
    item.config.stash[LEAKS].after(item.nodeid)
    return done


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """What was left behind is an error of the run: it is listed, counted, and the run fails."""
    left = session.config.stash[LEAKS].finish()
    if not left:
        return
    report = pytest.TestReport(
        nodeid="left behind",
        location=("left behind", None, "left behind"),
        keywords={},
        outcome="failed",
        longrepr="\n".join(left),
        when="teardown",
    )
    session.config.hook.pytest_runtest_logreport(report=report)
    if session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Where a test of a running mesh fails, what its processes said last is part of the report."""
    report = yield
    if report.failed:
        for name, value in getattr(item, "funcargs", {}).items():
            if last_words := getattr(value, "last_words", None):
                report.sections.append((f"last words of {name}", last_words()))
    return report
