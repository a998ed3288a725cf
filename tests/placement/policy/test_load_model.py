"""The load model smooths, keeps kinds of traffic apart and sees bursts; decisions say why."""

from __future__ import annotations

import numpy as np
import pytest

from placement.planner import plan_placement
from placement.policy.decision import Action, decide
from placement.policy.load_model import LoadModel


def draws(p: np.ndarray, windows: int, seed: int = 0, tokens: int = 20_000) -> np.ndarray:
    """[T, L, E] multinomial counts around p [L, E]."""
    rng = np.random.default_rng(seed)
    return np.stack([rng.multinomial(tokens, p) for _ in range(windows)])


def zipf(layers: int = 3, experts: int = 32, seed: int = 0) -> np.ndarray:
    p = np.tile(1 / np.arange(1.0, experts + 1), (layers, 1))
    p = np.random.default_rng(seed).permuted(p, axis=1)
    return p / p.sum(axis=1, keepdims=True)


def test_smooths_noise():
    p = zipf()
    model = LoadModel()
    windows = draws(p, 12, tokens=500)
    for window in windows:
        model = model.observe(window)
    forecast = model.forecast() / 500
    assert np.abs(forecast - p).sum() < np.abs(windows[-1] / 500 - p).sum() * 0.7


def test_observing_leaves_the_old_model_alone():
    before = LoadModel().observe(draws(zipf(), 1)[0])
    kept = before.forecast().copy()
    before.observe(draws(zipf(seed=1), 1)[0])
    np.testing.assert_array_equal(before.forecast(), kept)


def test_kinds_of_traffic_are_kept_apart():
    chat, code = zipf(seed=1), zipf(seed=2)
    model = LoadModel()
    for a, b in zip(draws(chat, 5), draws(code, 5, seed=1), strict=True):
        model = model.observe(a, "chat").observe(b, "code")
    only_code = model.forecast({"code": 1.0})
    assert np.abs(only_code - code).sum() < 0.2
    assert np.abs(model.forecast() / 40_000 - (chat + code) / 2).sum() < 0.2
    for _ in range(10):
        model = model.quiet("chat").observe(draws(code, 1)[0], "code")
    assert np.abs(model.forecast() / 20_000 - code).sum() < 0.3
    assert model.bursting_layers() == []


def test_a_burst_is_seen_in_its_layer_and_followed_at_once():
    p = zipf()
    model = LoadModel()
    for window in draws(p, 8):
        model = model.observe(window)
        assert model.bursting_layers() == []
    burst = p.copy()
    burst[1] = np.roll(p[1], 7)
    model = model.observe(draws(burst, 1, seed=3)[0])
    assert model.bursting_layers() == [1]
    share = model.forecast() / 20_000
    assert np.abs(share[1] - burst[1]).sum() < np.abs(share[1] - p[1]).sum()


def test_what_is_usual_are_averages_of_the_changes_seen():
    model = LoadModel()
    for window in draws(zipf(), 30, tokens=500):
        model = model.observe(window)
    (seen,) = model.kinds.values()
    assert (seen.change > 0).all()
    assert (seen.spread > 0).all()
    assert (seen.spread < seen.change / 2).all(), "noise of one size changes by one size"


def test_layers_without_tokens_keep_their_shape():
    p = zipf(layers=2)
    model = LoadModel().observe(draws(p, 1)[0])
    before = model.forecast()[0] / model.forecast()[0].sum()
    empty = draws(p, 1, seed=2)[0]
    empty[0] = 0
    after = model.observe(empty).forecast()[0]
    np.testing.assert_allclose(after / after.sum(), before)


def test_shape_changes_and_empty_models_are_errors():
    with pytest.raises(ValueError, match="no window observed"):
        LoadModel().forecast()
    model = LoadModel().observe(np.ones((2, 4)), "chat")
    with pytest.raises(ValueError, match="traffic kind 'chat' have shape"):
        model.observe(np.ones((2, 5)), "chat")


def test_decides_by_gap_and_change():
    speed, slots = np.ones(8), np.full(8, 6)
    planned = zipf() * 10_000
    experts = plan_placement(planned, speed, slots).experts
    same = decide(planned * 3, planned, experts, speed, slots)
    assert same.action is Action.KEEP
    assert "no copy would pay" in same.reason
    drift = planned.copy()
    drift[:, :4] *= 4
    nudge = decide(drift, planned, experts, speed, slots)
    assert nudge.action is Action.NUDGE
    assert nudge.balancedness < nudge.possible
    other = decide(np.roll(planned, 11, axis=1), planned, experts, speed, slots)
    assert other.action is Action.REPLAN
    assert "of the layers" in other.reason
