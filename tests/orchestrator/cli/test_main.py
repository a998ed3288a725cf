"""The command as a person runs it: a process of its own, no Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import orchestrator

ROOT = Path(orchestrator.__file__).parents[1]
HEAVIEST = ("torch", "ray", "vllm", "transformers")
HEAVY = (*HEAVIEST, "httpx", "pydantic", "yaml")


def expertmesh(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("EXPERTMESH_", "RAY_"))}
    return subprocess.run(
        [sys.executable, "-m", "orchestrator.cli", *arguments],
        capture_output=True,
        text=True,
        check=False,
        stdin=subprocess.DEVNULL,
        env=inherited | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | environment,
    )


COMMANDS = ("serve", "status", "doctor", "version")


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_says_how_to_call_it(command: tuple[str, ...]) -> None:
    shown = expertmesh(*command, "--help")
    assert shown.returncode == 0
    assert "Usage: expertmesh" in shown.stdout


@pytest.mark.parametrize("command", [(), *((name,) for name in COMMANDS)], ids=str)
def test_help_imports_nothing_heavy(command: tuple[str, ...]) -> None:
    """So it comes at once."""
    heavy = HEAVIEST if command else HEAVY
    code = (
        "import sys; from orchestrator.cli.main import main\n"
        f"try: main({[*command, '--help']})\n"
        f"finally: print([name for name in {heavy} if name in sys.modules], file=sys.stderr)"
    )
    shown = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )
    assert (shown.returncode, shown.stderr) == (0, "[]\n")


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (
            ["serve", "nowhere.yaml"],
            "error: config file nowhere.yaml does not exist: pass the path of a YAML file",
        ),
        (["serv"], "error: No such command 'serv'. Did you mean 'serve'?: see `expertmesh --help`"),
        (["serve", "--zzz"], "error: No such option: --zzz: see `expertmesh --help`"),
        (
            ["status", "--url", "http://127.0.0.1:1"],
            "error: no mesh answers at http://127.0.0.1:1: "
            "start one with `expertmesh serve`, or give --url",
        ),
    ],
)
def test_bad_input_is_one_line_and_code_2(arguments: list[str], line: str) -> None:
    ran = expertmesh(*arguments)
    assert (ran.returncode, ran.stdout, ran.stderr) == (2, "", line + "\n")


@pytest.mark.parametrize("arguments", [["-v", "serve"], ["serve", "-v"]])
def test_verbose_shows_where_an_error_came_from(arguments: list[str]) -> None:
    ran = expertmesh(*arguments, "nowhere.yaml")
    assert ran.returncode == 2
    assert "Traceback" in ran.stderr
    assert ran.stderr.splitlines()[-1].startswith("error: config file nowhere.yaml")


def test_command_alone_shows_help_only() -> None:
    ran = expertmesh()
    assert "Usage: expertmesh" in ran.stdout + ran.stderr
    assert "error:" not in ran.stdout + ran.stderr


def test_serve_refuses_a_missing_model_before_starting_anything(tmp_path: Path) -> None:
    config = tmp_path / "mesh.yaml"
    config.write_text("model: {path: nothing}\npools: {a: {vendor: cpu}}\ngateway: {port: 0}\n")
    ran = expertmesh("serve", str(config))
    assert ran.returncode == 2
    assert ran.stderr == (
        f"error: model path {tmp_path}/nothing does not exist: "
        "set model.path to a folder with config.json and safetensors files\n"
    )


def test_doctor_reports_every_check_and_fails(tmp_path: Path) -> None:
    config = tmp_path / "mesh.yaml"
    config.write_text("model: {path: nothing}\npools: {a: {vendor: cpu}}\ngateway: {port: 0}\n")
    ran = expertmesh("doctor", str(config), "--json")
    assert ran.returncode == 2
    findings = {finding["name"]: finding for finding in json.loads(ran.stdout)}
    assert [name for name, finding in findings.items() if not finding["ok"]] == ["model"]
    assert findings["model"]["fix"]
    table = expertmesh("doctor", str(config))
    assert table.returncode == 2
    assert "1 to put right first" in table.stdout


def test_doctor_counts_a_broken_config_as_a_finding(tmp_path: Path) -> None:
    ran = expertmesh("doctor", str(tmp_path / "none.yaml"), "--json")
    last = json.loads(ran.stdout)[-1]
    assert (ran.returncode, last["name"], last["ok"]) == (2, "config", False)


def test_version_names_what_it_stands_on() -> None:
    lines = expertmesh("version").stdout.splitlines()
    assert [line.split()[0] for line in lines] == [
        "expertmesh",
        "python",
        "torch",
        "vllm",
        "ray",
        "transformers",
    ]
