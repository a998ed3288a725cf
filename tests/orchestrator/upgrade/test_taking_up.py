"""Which config the next process of a controller goes by, whatever was on disk when one ended."""

from dataclasses import replace
from pathlib import Path

import pytest

from orchestrator.control.state import Epoch as MeshEpoch
from orchestrator.control.state import EpochId, Intent, Rolling
from orchestrator.errors import UserError
from orchestrator.upgrade.interfaces import JOURNAL, installed, why_apart
from orchestrator.upgrade.standing import Next
from orchestrator.upgrade.taking_up import (
    check_may_join,
    files_of,
    keep_running,
    take_up,
    why_not_yet,
)
from tests.orchestrator.upgrade.configs import config

SESSION = "/run/one"


def wanted(folder: Path, session: str = SESSION, **sections: object) -> Next:
    return Next(session=session, config=config(folder, **sections).model_dump(mode="json"))


def test_the_first_process_goes_by_what_it_is_given(tmp_path: Path) -> None:
    given = config(tmp_path)
    keep_running(config(tmp_path, engines={"replicas": 3}), SESSION, "c", "f")
    assert take_up(given, SESSION, again=False).config == given
    assert take_up(given, "/run/two", again=True).config == given, "files of another run"


def test_the_next_goes_by_what_is_wanted_until_the_mesh_runs_with_it(tmp_path: Path) -> None:
    given, files = config(tmp_path), files_of(config(tmp_path))
    keep_running(given, SESSION, "c", "f")
    assert take_up(given, SESSION, again=True) == (given, None, frozenset())
    fresh = wanted(tmp_path, pools={"more": {}})
    files.want(fresh)
    for _ in range(2):  # it may die before the mesh runs with it
        taken = take_up(given, SESSION, again=True)
        assert (list(taken.config.pools), taken.added) == (["cpu", "gpu", "more"], {"more"})
        assert taken.wanted == fresh
    keep_running(taken.config, SESSION, "c", "f")
    assert files.waiting() is None
    assert take_up(given, SESSION, again=True) == (taken.config, None, frozenset())
    files.remove()
    assert list(tmp_path.iterdir()) == []


def test_a_config_that_is_not_understood_is_set_aside_and_the_old_one_stays(
    tmp_path: Path,
) -> None:
    given, files = config(tmp_path), files_of(config(tmp_path))
    keep_running(given, SESSION, "c", "f")
    bad = wanted(tmp_path)
    files.want(bad.model_copy(update={"config": {**bad.config, "news": 1}}))
    assert take_up(given, SESSION, again=True) == (given, None, frozenset())
    refused = files.refused()
    assert refused is not None
    assert "news" in refused.reason
    assert files.waiting() is None


def test_files_that_cannot_be_read_say_nothing(tmp_path: Path) -> None:
    given, files = config(tmp_path), files_of(config(tmp_path))
    keep_running(given, SESSION, "c", "f")
    files.next_path.write_text("{")
    assert take_up(given, SESSION, again=True).config == given
    files.running_path.write_text("no JSON")
    assert take_up(given, SESSION, again=True).config == given


def test_another_checkpoint_or_version_does_not_join(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = config(tmp_path)
    check_may_join(given, SESSION, "f")  # nothing is known of a mesh
    keep_running(given, SESSION, "c", "f")
    check_may_join(given, SESSION, "f")
    with pytest.raises(UserError, match="another checkpoint"):
        check_may_join(given, SESSION, "g")
    newer = {**installed(), "frame version": "99"}
    monkeypatch.setattr("orchestrator.upgrade.taking_up.installed", lambda: newer)
    with pytest.raises(
        UserError, match=r"frame version: the mesh has \d, what is installed has 99"
    ):
        check_may_join(given, SESSION, "f")


def test_which_versions_work_side_by_side() -> None:
    here = installed()
    assert why_apart(here, here) == []
    assert why_apart({**here, JOURNAL: "1"}, here) == [], "it is brought up to date"
    (older,) = why_apart({**here, JOURNAL: "99"}, here)
    assert older.startswith("journal schema: the mesh has 99")
    (without,) = why_apart({k: v for k, v in here.items() if k != "Ray"}, here)
    assert without.startswith("Ray: the mesh has none")


def test_a_controller_gives_way_only_to_a_config_that_waits_and_when_nothing_is_restarted(
    tmp_path: Path,
) -> None:
    given, files = config(tmp_path), files_of(config(tmp_path))
    serving = Intent(epoch=MeshEpoch(EpochId(1, 1), {}, {}))
    assert "no config waits" in why_not_yet(given, SESSION, serving)
    files.want(wanted(tmp_path, session="/run/other"))
    assert "no config waits" in why_not_yet(given, SESSION, serving)
    files.want(wanted(tmp_path))
    assert why_not_yet(given, SESSION, serving) == ""
    assert "nothing is placed" in why_not_yet(given, SESSION, Intent())
    rolling = replace(serving, rolling=Rolling("cpu", ()))
    assert "cpu is being restarted" in why_not_yet(given, SESSION, rolling)
