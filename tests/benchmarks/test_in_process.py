"""Experts in the engine's process, which the throughput benchmark compares a mesh with."""

import pytest
import torch

from benchmarks.harness.in_process import InProcessExperts, half_of
from tests.checkpoints.make import make_checkpoint

EXPERTS, HIDDEN, ROWS, TOP_K = 16, 128, 12, 4


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model") / "qwen3_moe")


def test_halves_are_whole_experts_of_about_as_many_rows():
    ids = torch.rand(64, EXPERTS).topk(TOP_K).indices.int()
    elsewhere = half_of(ids, EXPERTS)
    assert not set(ids[elsewhere].tolist()) & set(ids[~elsewhere].tolist())
    assert abs(int(elsewhere.sum()) - 128) <= 16


def test_half_here_and_half_elsewhere_is_what_all_here_is(model):
    whole = InProcessExperts(model, None)
    halves = InProcessExperts(model, InProcessExperts(model, None))
    rows = torch.randn(ROWS, HIDDEN).bfloat16()
    ids = torch.rand(ROWS, EXPERTS).topk(TOP_K).indices.int()
    weights = torch.rand(ROWS, TOP_K)
    one, two = (each.wait(each.send(1, rows, weights, ids)) for each in (whole, halves))
    assert one.float().norm() > 0
    assert (one.float() - two.float()).norm() < 0.01 * one.float().norm()
