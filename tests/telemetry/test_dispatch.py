"""What dispatchers told, as totals that never go back."""

from orchestrator.api.models import DispatcherView
from orchestrator.telemetry.dispatch import (
    NOTHING,
    DispatchTotals,
    advance_dispatch,
    dispatch_families,
)
from tests.dashboards.moving_mesh import DID


def dispatcher(id: str, calls: int, **more: int) -> DispatcherView:
    did = DID | {"calls": calls, "starved": 0, "resent": 0, **more}
    return DispatcherView.model_validate(
        {"id": id, "adopted": None, "heard_ago_s": 0.0, "did": did}
    )


def samples(totals: DispatchTotals) -> dict[str, float]:
    return {
        sample.name + sample.labels.get("le", ""): sample.value
        for family in dispatch_families(totals)
        for sample in family.samples
    }


def test_what_one_did_that_has_ended_stays_counted() -> None:
    first = advance_dispatch(DispatchTotals(), [dispatcher("a", 5), dispatcher("b", 7)])
    second = advance_dispatch(first, [dispatcher("b", 9)])
    assert samples(second)["expertmesh_dispatch_calls_total"] == 14
    # Another process got the same id.
    third = advance_dispatch(second, [dispatcher("b", 2)])
    assert samples(third)["expertmesh_dispatch_calls_total"] == 16


def test_durations_are_cumulative_and_shards_are_summed() -> None:
    shown = samples(advance_dispatch(DispatchTotals(), [dispatcher("a", 5), dispatcher("b", 1)]))
    assert shown["expertmesh_dispatch_wait_seconds_bucket0.0001"] == 10
    assert shown["expertmesh_dispatch_wait_seconds_bucket+Inf"] == 50
    assert shown["expertmesh_dispatch_wait_seconds_count"] == 50
    assert shown["expertmesh_dispatch_wait_seconds_sum"] == 0.5
    assert shown["expertmesh_dispatch_service_seconds_count"] == 50
    assert shown["expertmesh_dispatch_late_total"] == 6
    assert shown["expertmesh_dispatch_lost_links_total"] == 2


def test_one_that_told_nothing_yet_is_left_out() -> None:
    silent = DispatcherView(id="a", adopted=None, heard_ago_s=0.0)
    assert advance_dispatch(DispatchTotals(), [silent]).total == NOTHING
