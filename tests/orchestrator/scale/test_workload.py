"""`expertmesh plan --workload`: files that are shipped, what is printed, and bad ones."""

import json
from io import StringIO
from pathlib import Path

import pytest
import yaml
from rich.console import Console

from orchestrator.cli.main import main
from orchestrator.cli.workload import plan_workload
from orchestrator.errors import UserError
from orchestrator.scale.workload_file import costs_of, read_workload

ROOT = Path(__file__).parents[3]
EXAMPLES = sorted((ROOT / "examples" / "workloads").glob("*.yaml"))
CHAT = ROOT / "examples" / "workloads" / "chat.yaml"


def changed(folder: Path, **sections: object) -> Path:
    """The example with keys replaced: `engine__step_us=3`; None takes one away."""
    content = yaml.safe_load(CHAT.read_text())
    for key, value in sections.items():
        *parents, last = key.split("__")
        at = content
        for parent in parents:
            at = at[parent]
        if value is None:
            del at[last]
        else:
            at[last] = value
    path = folder / "workload.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_the_examples_are_answered(path: Path) -> None:
    said = StringIO()
    assert plan_workload(path, False, Console(file=said, width=200)) == 0
    assert " to " in said.getvalue()
    assert "why: least cost that gives" in said.getvalue()


def test_json_has_the_best_and_the_next(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["plan", "--workload", str(CHAT), "--json"])
    assert not ended.value.code
    body = json.loads(capsys.readouterr().out)
    best, others = body["best"], body["others"]
    assert body["met"]
    assert best["tokens_per_s"] >= 1500
    assert best["simulated_tokens_per_s"] >= 1500
    assert best["price_per_hour"] == pytest.approx(0.4 * best["engines"] + 0.2 * best["shards"])
    assert all(other["price_per_hour"] >= best["price_per_hour"] for other in others)


def test_what_cannot_be_reached_is_said(tmp_path: Path) -> None:
    said = StringIO()
    path = changed(tmp_path, targets={"tokens_per_s": 1e7})
    plan_workload(path, False, Console(file=said, width=200))
    assert "why: nothing that may be had reaches 10,000,000 tokens/s" in said.getvalue()


def test_without_prices_none_are_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path, engine__price_per_hour=None, shard__price_per_hour=None)
    plan_workload(path, True)
    assert json.loads(capsys.readouterr().out)["best"]["price_per_hour"] is None


def test_a_checkpoint_gives_its_own_shapes(tmp_path: Path) -> None:
    demo = ROOT / "examples" / "demo" / "checkpoint"
    _, side, choice, _ = costs_of(read_workload(changed(tmp_path, model={"path": str(demo)})))
    config = json.loads((demo / "config.json").read_text())
    assert side.experts == config["n_routed_experts"]
    assert side.top_k == config["num_experts_per_tok"]
    assert choice.least_shards == 1


def test_known_models_have_their_sizes(tmp_path: Path) -> None:
    path = changed(tmp_path, model={"name": "v4-flash"}, shard__memory="100GB")
    _, side, choice, _ = costs_of(read_workload(path))
    assert (side.layers, side.experts) == (43, 256)
    assert choice.least_shards == 2


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"engine__step_us": -1}, "engine.step_us: Input should be greater than or equal to 0"),
        ({"engine__stepus": 1}, "engine.stepus: Extra inputs are not permitted"),
        ({"shard__row_us": 0}, "shard.row_us: Input should be greater than 0"),
        ({"model": {"name": "v5"}}, "model: no model v5 is known, only v4-flash and v4-pro"),
        ({"model": {"name": "v4-pro", "weights": "fp9"}}, "v4-pro is not known in fp9"),
        ({"model__experts": None}, "model: layers, experts, top_k, hidden and expert_bytes belong"),
        ({"model__top_k": 65}, "model: top_k 65 is more than experts 64"),
        ({"model": {}}, "model: give path, or name, or layers"),
        ({"requests__prompt_tokens": {"kind": "values"}}, "requests.prompt_tokens: give values"),
        ({"requests__output_tokens": {}}, "fixed lengths have a mean and no values"),
        ({"engine__step_tokens": 64}, "leaves no room for prompts beside engine.batches 64"),
        ({"shard__price_per_hour": None}, "shard.price_per_hour belong together"),
        ({"targets": {"inter_token_ms": 0}}, "targets.inter_token_ms: Input should be greater"),
        ({"shard__memory": "50MiB"}, "raise shard.most or shard.memory"),
        ({"model": {"path": "nowhere"}}, "model.path: "),
    ],
)
def test_bad_input_names_the_key(tmp_path: Path, changes: dict, words: str) -> None:
    with pytest.raises(UserError) as refused:
        costs_of(read_workload(changed(tmp_path, **changes)))
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)
