"""The gateway's looks at a mesh, and what it shows of them."""

import asyncio
import json
import re
import time

import numpy as np
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as open_metrics
from prometheus_client.parser import text_string_to_metric_families as plain_text

from orchestrator.clients.mesh import MeshLostError
from orchestrator.config.telemetry import TelemetryConfig
from orchestrator.gateway.app import build_app
from orchestrator.gateway.config import GatewayConfig
from orchestrator.gateway.telemetry import EVENTS_PER_S, Telemetry
from orchestrator.telemetry.engines import EngineFigures
from orchestrator.telemetry.matrix import decode
from orchestrator.telemetry.observer import NoSuchShard, Observer
from orchestrator.telemetry.table import BY_NAME, DISPATCH, GATEWAY, MESH, METRICS, Kind
from tests.dashboards.moving_mesh import moving_mesh
from tests.orchestrator.gateway.fakes import call, figures_of

CONFIG = TelemetryConfig()


def observer_of(mesh, clock=time.monotonic):
    def engines():
        pages = {id: engine.metrics_page for id, engine in mesh.fakes.items()}
        return {id: EngineFigures(**figures_of(page)) for id, page in pages.items()}

    return Observer(CONFIG, mesh, engines, lambda: 0, clock)


def looked(mesh, looks=2):
    observer = observer_of(mesh)

    async def main():
        for _ in range(looks):
            await observer.look()

    asyncio.run(main())
    return observer


async def shown(app, headers=None):
    """The metrics once the mesh and its engine have been looked at."""
    async with asyncio.timeout(60):
        while True:
            page = await call(app, "GET", "/metrics", headers=headers)
            if b"vllm:generation" in page.body and b"expertmesh_epoch " in page.body:
                return page
            await asyncio.sleep(0.05)


def test_every_metric_that_is_shown_is_in_the_table_and_every_other_way_round():
    async def main():
        mesh, once = moving_mesh(), TelemetryConfig(interval_s=3600)
        app = build_app(
            GatewayConfig(mesh="test", model_name="tiny", telemetry=once), mesh, frozenset()
        )
        async with app.router.lifespan_context(app):
            await call(app, "POST", "/v1/completions")
            return (await shown(app)).body.decode()

    page = asyncio.run(main())
    found = {f.name: f for f in plain_text(page) if f.name.startswith("expertmesh_")}
    created = {name for name in found if name.endswith("_created")}
    named = {m.name.removesuffix("_total"): m for m in (*GATEWAY, *MESH, *DISPATCH)}
    # One look makes no window.
    windows = {n for n in named if re.search("balancedness|peak|hot_expert", n)}
    assert found.keys() - created <= named.keys()
    assert named.keys() - found.keys() == windows
    for name, family in found.items():
        if name in named:
            assert (family.type, family.documentation) == (named[name].kind, named[name].help)


def test_a_window_of_load_shows_balance_and_hot_experts():
    observer = looked(moving_mesh())
    families = {f.name: f for f in observer.families(0.0)}
    balance = families["expertmesh_layer_balancedness"].samples
    assert len(balance) == 8
    assert all(0 < sample.value < 1 for sample in balance)
    ranks = [s.labels["rank"] for s in families["expertmesh_hot_expert_share"].samples]
    assert ranks == [str(rank) for rank in range(1, CONFIG.hot_experts + 1)]


def test_series_are_bounded_and_a_scrape_is_quick_at_the_largest_size():
    observer = looked(moving_mesh(num_layers=61, num_experts=384, num_shards=256))
    began_s = time.perf_counter()
    families = observer.families(0.0)
    assert sum(len(f.samples) for f in families) <= 2000
    assert time.perf_counter() - began_s < 1.0  # the benchmark measures it; this finds a blunder


def test_both_formats_can_be_read():
    async def main(accept):
        app = build_app(GatewayConfig(mesh="test", model_name="tiny"), moving_mesh(), frozenset())
        async with app.router.lifespan_context(app):
            return await shown(app, {"accept": accept})

    answer = asyncio.run(main("application/openmetrics-text;version=1.0.0"))
    assert answer.headers["content-type"].startswith("application/openmetrics-text")
    families = list(open_metrics(answer.body.decode()))
    names = {sample.name for family in families for sample in family.samples}
    tokens = "vllm:generation_tokens_total"
    assert {"expertmesh_shard_assignments_total", "expertmesh_epoch", tokens} <= names
    assert asyncio.run(main("")).headers["content-type"].startswith("text/plain; version=0.0.4")


def test_the_last_look_stays_and_ages_while_the_controller_is_away():
    now = [100.0]
    mesh = moving_mesh()
    observer = observer_of(mesh, lambda: now[0])

    async def main():
        await observer.look()
        mesh.silent, now[0] = True, 130.0
        with pytest.raises(MeshLostError):
            await observer.look()

    asyncio.run(main())
    families = {f.name: f for f in observer.families(30.0)}
    assert families["expertmesh_snapshot_age_seconds"].samples[0].value == 30.0
    assert families["expertmesh_shard_assignments"].samples


def test_matrices_are_totals_then_differences():
    mesh = moving_mesh()
    observer = looked(mesh, 1)
    totals, first, base = decode(observer.matrix(0, None))
    assert base == 0
    asyncio.run(observer.look())
    added, second, base = decode(observer.matrix(first, None))
    assert (base, second) == (first, first + 1)
    assert (totals + added == mesh.counts).all()
    assert decode(observer.matrix(12345, None))[2] == 0  # somebody else's number
    own, *_ = decode(observer.matrix(0, "cpu-0"))
    assert (own == np.where(mesh.home == 3, mesh.counts, 0)).all()
    with pytest.raises(NoSuchShard):
        observer.matrix(0, "nobody")


def test_what_happens_to_components_is_told_once():
    mesh = moving_mesh()
    observer = looked(mesh, 2)
    mesh.dead, mesh.epoch = {"cpu-0"}, 2
    asyncio.run(observer.look())
    asyncio.run(observer.look())
    told = [(h.subject, h.level, h.text) for h in observer.happenings][1:]
    assert told == [
        ("mesh", "bad", "not ready: all experts are placed"),
        ("mesh", "info", "plan epoch 1 → 2"),
        ("cpu-0", "bad", "shard ready → dead: its process was killed by SIGKILL"),
    ]


def test_before_the_first_look_nothing_is_claimed():
    app = build_app(GatewayConfig(mesh="test", model_name="tiny"), moving_mesh(), frozenset())
    before = json.loads(asyncio.run(call(app, "GET", "/api/v1/telemetry")).body)
    assert "status" not in before
    assert before["points"] == []


def test_kinds_and_names_of_the_table_agree():
    for metric in BY_NAME.values():
        assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total"), metric.name
        assert metric.help.endswith("."), metric.name
        assert not {"expert", "request", "request_id"} & set(metric.labels), metric.name
    assert len(BY_NAME) == len(METRICS)


def test_a_thousand_who_follow_are_told_of_fewer_looks_and_each_look_is_made_once():
    mesh, config = moving_mesh(), TelemetryConfig(interval_s=0.05)
    observer = observer_of(mesh)
    observer._config = config
    made = []

    def silence_s():
        made.append(observer.ticks)  # asked for each event that is made
        return 0.0

    telemetry = Telemetry(config, observer, None, list, silence_s)
    told = []

    async def follow():
        response = await telemetry.stream(None)
        async for event in response.body_iterator:
            told.append(event)

    async def main():
        tasks = [asyncio.create_task(observer.run())]
        tasks += [asyncio.create_task(follow()) for _ in range(1000)]
        await asyncio.sleep(1.0)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert observer.ticks > 5

    asyncio.run(main())
    # All get their first; few came so early that they get another one within a second.
    assert 1000 <= len(told) <= 1000 + 3 * EVENTS_PER_S
    assert max(made.count(tick) for tick in made) <= 2  # with all of the curves, and without


def test_the_stream_gives_a_slow_reader_the_newest_look_and_keeps_no_queue():
    mesh = moving_mesh()
    observer = observer_of(mesh)

    async def main():
        seen = []
        running = asyncio.create_task(observer.run())
        async for _ in observer.followed():
            seen.append(observer.snapshot.number if observer.snapshot else 0)
            await asyncio.sleep(0.12)  # several looks go by
            if len(seen) == 4:
                break
        running.cancel()
        return seen

    observer._config = TelemetryConfig(interval_s=0.02)
    seen = asyncio.run(main())
    assert seen == sorted(seen)
    assert seen[3] - seen[1] >= 4
