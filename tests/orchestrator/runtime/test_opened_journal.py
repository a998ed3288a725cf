"""What a controller finds when it opens its mesh's journal."""

import asyncio
from pathlib import Path

import pytest

from orchestrator.config.schema import MeshConfig
from orchestrator.control.journal import Journal, JournalError
from orchestrator.control.state import Intent
from orchestrator.runtime import opened_journal

INTENT = Intent(term=7, fingerprint="f")


@pytest.fixture
def config(tmp_path: Path) -> MeshConfig:
    return MeshConfig.model_validate(
        {
            "mesh": {"name": "m"},
            "model": {"path": "/m"},
            "pools": {"host": {"vendor": "cpu"}},
            "cluster": {"state_dir": str(tmp_path)},
        }
    )


def open_it(config: MeshConfig) -> tuple[Intent | None, bool]:
    journal, before, damaged = asyncio.run(opened_journal.opened_journal(config))
    journal.close()
    return before, damaged


def test_what_was_written_is_read(config: MeshConfig, tmp_path: Path) -> None:
    assert open_it(config) == (None, False)
    journal = Journal(tmp_path, "m")
    journal.write(INTENT, [], 0.0)
    journal.close()
    assert open_it(config) == (INTENT, False)


def test_a_damaged_one_is_kept_aside(config: MeshConfig, tmp_path: Path) -> None:
    (tmp_path / "m.journal").write_bytes(b"no journal" * 1000)
    assert open_it(config) == (None, True)
    assert (tmp_path / "m.journal.damaged-0").read_bytes() == b"no journal" * 1000
    assert open_it(config) == (None, False), "the new one is whole"


def test_one_that_is_being_left_is_waited_for(config: MeshConfig, tmp_path: Path) -> None:
    async def leave_and_open() -> tuple[Intent | None, bool]:
        before = Journal(tmp_path, "m")
        before.write(INTENT, [], 0.0)
        opening = asyncio.create_task(opened_journal.opened_journal(config))
        await asyncio.sleep(0.1)
        assert not opening.done()
        before.close()
        journal, intent, damaged = await opening
        journal.close()
        return intent, damaged

    assert asyncio.run(leave_and_open()) == (INTENT, False)


def test_one_that_is_held_is_refused(
    config: MeshConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opened_journal, "LOCK_TIMEOUT_S", 0.1)
    held = Journal(tmp_path, "m")
    with pytest.raises(JournalError, match="is held by another controller"):
        open_it(config)
    held.close()
