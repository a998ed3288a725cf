"""`expertmesh simulate --page`: what the page is given, and the page in a real browser."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import uvicorn

from orchestrator.cli.replay_page import replay_app, replay_data
from orchestrator.load_trace import LoadTrace
from placement.policy.simulate import simulate
from placement.trace import Trace
from tests.dashboards.moving_mesh import free_port
from tests.processes import wait_until

WINDOWS, LAYERS, EXPERTS = 6, 3, 16
SHARDS = ["a-0", "a-1", "b-0"]


def replayed():
    rng = np.random.default_rng(3)
    counts = rng.poisson(rng.pareto(1.2, (WINDOWS, LAYERS, EXPERTS)) * 50 + 5)
    replays = simulate(counts, [1.0, 1.0, 2.0], [8, 8, 8], expert_bytes=100)
    starts = np.arange(WINDOWS, dtype=float)
    kinds = ("",) * WINDOWS
    trace = LoadTrace("tiny", (1, 2, 5), Trace(counts, starts, np.ones(WINDOWS), kinds))
    return trace, replays, replay_data({"model": "tiny", "shards": SHARDS}, trace, replays)


@contextmanager
def served(data):
    port = free_port()
    config = uvicorn.Config(replay_app(data), port=port, log_level="warning")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def test_every_window_but_the_first_is_told():
    trace, replays, data = replayed()
    assert (data["windows"], data["experts"], data["layers"]) == (WINDOWS - 1, EXPERTS, [1, 2, 5])
    for name, replay in replays.items():
        told = data["policies"][name]
        assert len(told["times"]) == WINDOWS - 1
        # All of a window's load is somewhere: time times speed.
        done = np.array(told["times"]) @ [1.0, 1.0, 2.0]
        assert done == pytest.approx(trace.trace.counts[1:].sum(axis=(1, 2)), rel=1e-3)
        assert replay.copies.shape == (WINDOWS - 1, LAYERS, EXPERTS)
        assert replay.copies.min() >= 1
        assert replay.copies.sum(axis=2).max() <= 24


@pytest.mark.long
def test_it_plays(open_page):
    trace, _, data = replayed()
    with served(data) as url:
        page = open_page(url + "/")

        def until(condition):
            wait_until(lambda: page.evaluate(condition), timeout_s=90)

        until("document.querySelector('#c-policies .plot-container') !== null")
        assert page.text_content("#at") == f"1 of {WINDOWS - 1}"
        assert page.locator("#shards .item").count() == len(SHARDS)
        assert page.locator("#sums tbody tr").count() == len(data["policies"])
        page.hover("#heat", position={"x": 3, "y": 3})
        counted = int(trace.trace.counts[1, 0, 0])
        assert f"Layer 1, expert 0: {counted:,} assignments" in page.text_content("#cell")
        page.click("#play")
        until(f"document.querySelector('#at').textContent === '3 of {WINDOWS - 1}'")
        page.click("#play")
        assert page.text_content("#play") == "Play"
        page.select_option("#what", "copies")
