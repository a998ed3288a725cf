"""Reading config files: what is accepted, and the one line a fault is told in."""

from pathlib import Path

import pytest

from actors.wire.security import Protection
from orchestrator.config.load import default_config_path, load_config
from orchestrator.config.schema import MeshConfig
from orchestrator.config.serving import RouterMode
from orchestrator.errors import UserError

REPOSITORY = Path(__file__).resolve().parents[3]
SHIPPED = sorted([*REPOSITORY.glob("examples/mesh/*.yaml"), REPOSITORY / "examples/demo/mesh.yaml"])
SMALL = "model: {path: m}\npools: {a: {vendor: cpu}}\n"


def write(folder: Path, text: str) -> Path:
    path = folder / "mesh.yaml"
    path.write_text(text)
    return path


def fault(folder: Path, text: str) -> str:
    """The line a faulty config is refused with, without the path in front."""
    path = write(folder, text)
    with pytest.raises(UserError) as caught:
        load_config(path)
    line = str(caught.value)
    assert "\n" not in line
    assert line.startswith(str(path))
    return line.removeprefix(str(path))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_configs_load(path: Path) -> None:
    config = load_config(path)
    assert config.num_shards >= 1


def test_examples_are_found() -> None:
    assert {path.name for path in SHIPPED} >= {"cpu_only.yaml", "mixed_cluster.yaml", "mesh.yaml"}


def test_default_is_the_emulated_demo_mesh() -> None:
    config = load_config(None)
    assert default_config_path() == REPOSITORY / "examples/demo/mesh.yaml"
    assert list(config.pools) == ["nvidia", "ascend", "cambricon", "cpu"]
    assert all(pool.emulated and pool.shards == 1 for pool in config.pools.values())
    assert len({pool.speed for pool in config.pools.values()}) == 4
    assert config.model.path == REPOSITORY / "examples/demo/checkpoint"
    assert config.model.name == "demo"


def test_demo_pools_hold_every_expert_twice_and_some_more() -> None:
    pairs, bytes_per_expert = 4 * 64, 3 * 256 * 128 // 2 + 3 * 256 * 128 // 32
    config = load_config(None)
    slots = sum(pool.memory // bytes_per_expert for pool in config.pools.values())
    assert config.placement.min_copies == 2
    assert 2 * pairs < slots < 3 * pairs


def test_relative_paths_count_from_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "elsewhere").mkdir()
    path = write(tmp_path, SMALL + "cluster: {temp_dir: ../scratch}\n")
    monkeypatch.chdir(tmp_path / "elsewhere")
    config = load_config(Path("../mesh.yaml"))
    assert config == load_config(path)
    assert config.model.path == tmp_path / "m"
    assert config.model.name == "m"
    assert config.cluster.temp_dir == tmp_path.parent / "scratch"


def test_absolute_and_home_paths_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    config = load_config(write(tmp_path, SMALL.replace("path: m", "path: ~/m")))
    assert config.model.path == tmp_path / "m"
    config = load_config(write(tmp_path, SMALL.replace("path: m", "path: /models/m")))
    assert config.model.path == Path("/models/m")


def test_survives_json_on_the_way_to_another_process(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL + "router: {mode: actor}\n"))
    assert config.router.mode is RouterMode.ACTOR
    assert MeshConfig.model_validate_json(config.model_dump_json()) == config


def test_section_with_everything_commented_out_means_defaults(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL + "router:\n  # mode: actor\n"))
    assert config.router.mode is RouterMode.EMBEDDED


def test_endpoint_from_the_command_line_wins(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL + "gateway: {host: '::1', port: 81}\n"))
    assert config.with_endpoint(None, None) == config
    assert config.with_endpoint("0.0.0.0", 9000).gateway.host == "0.0.0.0"
    assert config.with_endpoint(None, 0).gateway.port == 0
    assert config.with_endpoint(None, 9000).gateway.host == "::1"


@pytest.mark.parametrize(
    ("text", "line"),
    [
        (
            SMALL + "gateway:\n  prot: 1\n",
            ":4: unknown key gateway.prot: did you mean gateway.port?",
        ),
        (SMALL + "gatway: {}\n", ":3: unknown key gatway: did you mean gateway?"),
        (
            SMALL + "router:\n  xyz: 1\n",
            ":4: unknown key router.xyz: valid keys here are mode, soft_deadline_s",
        ),
        (
            "model: {path: m}\npools:\n  a:\n    vender: cpu\n",
            ":4: unknown key pools.a.vender: did you mean pools.a.vendor? (and 1 more)",
        ),
        (
            SMALL + "gateway:\n  api_keys: [k]\n",
            ":4: unknown key gateway.api_keys: "
            "API keys come from the environment variable EXPERTMESH_API_KEYS",
        ),
        ("model: {path: m}\n", ": pools is missing: add it"),
        (
            SMALL + "engines:\n  replicas: 0\n",
            ":4: engines.replicas: input should be greater than or equal to 1, got 0",
        ),
        (
            SMALL + "placement:\n  redundant_slots: -1\n",
            ':4: placement.redundant_slots: expected a number of slots or "fill", got -1',
        ),
        (
            "model: {path: m}\npools:\n  a: {vendor: cpu, memory: 3 parsec}\n",
            ':3: pools.a.memory: expected bytes or a size such as "512MiB" or "1.5GB"',
        ),
        (
            "model: {path: m}\npools:\n  a: {vendor: nvidia}\n",
            ":3: pools.a: vendor nvidia on device cpu is an emulation: set emulated: true",
        ),
        (
            "model: {path: m}\npools:\n  a: {vendor: cpu, checkpoint: n}\n",
            ":3: pools.a: checkpoint stands in for model.path in another format: "
            "set checkpoint_tolerance",
        ),
        (
            "model: {path: m}\npools:\n  a: {vendor: cpu, checkpoint_tolerance: 0.1}\n",
            ":3: pools.a: checkpoint_tolerance is of a checkpoint: set checkpoint too",
        ),
        (
            "model: {path: m}\npools:\n  a: {vendor: cpu, device: 'npu:0'}\n",
            ":3: pools.a: device npu:0 is not a CPU: set vendor to its maker",
        ),
        (
            "model: {path: m}\npools:\n  A_1: {vendor: cpu}\n",
            ":3: pools.A_1: 'A_1' is not a name: "
            "use at most 63 lower case letters, digits and inner hyphens",
        ),
        (
            "model: {path: m}\npools: {a: {vendor: cpu, speed: 1}, b: {vendor: cpu}}\n",
            ":2: pools: speed is given for some pools only: give it for b too",
        ),
        (
            SMALL + "engines:\n  vllm: {api-key: x}\n",
            ":4: engines.vllm: api_key is set by the mesh: "
            "use the environment variable EXPERTMESH_API_KEYS",
        ),
        (SMALL + "model: {path: n}\n", ":3: key model is given twice: keep one"),
        (SMALL + "router: {mode: [\n", ":4: not valid YAML: expected the node content, but"),
        ("- a\n", ": the top level must be a mapping of sections, such as `model:`"),
        ("", ": model is missing: add it (and 1 more)"),
    ],
)
def test_fault_is_one_line_with_place_key_and_fix(tmp_path: Path, text: str, line: str) -> None:
    assert fault(tmp_path, text).startswith(line)


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"config file .*nowhere\.yaml does not exist"):
        load_config(tmp_path / "nowhere.yaml")


def test_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        load_config(tmp_path)


def test_vllm_flags_are_taken_in_either_spelling(tmp_path: Path) -> None:
    config = load_config(write(tmp_path, SMALL + "engines: {vllm: {--max-num-seqs: 3}}\n"))
    assert config.engines.vllm == {"max_num_seqs": 3}


def test_connections_between_nodes_are_authenticated_by_default(
    tmp_path: Path,
) -> None:
    router = load_config(write(tmp_path, SMALL)).router
    assert router.between_nodes_security is Protection.AUTHENTICATED
    assert router.tls_certificate is None


@pytest.mark.parametrize(
    ("router", "reason"),
    [
        ("{tls_certificate: c.pem}", "need between_nodes_security: encrypted"),
        (
            "{between_nodes_security: none, tls_key: k.pem}",
            "need between_nodes_security: encrypted",
        ),
        ("{between_nodes_security: encrypted, tls_key: k.pem}", "tls_key needs tls_certificate"),
        ("{between_nodes_security: tls}", "between_nodes_security"),
    ],
)
def test_certificates_without_tls_are_refused(tmp_path: Path, router: str, reason: str) -> None:
    assert reason in fault(tmp_path, f"{SMALL}router: {router}\n")


@pytest.mark.parametrize(
    ("flags", "predicts"),
    [
        ("{}", False),
        ("{speculative_config: {method: ngram, num_speculative_tokens: 2}}", False),
        ("{speculative_config: {method: mtp, num_speculative_tokens: 1}}", True),
        ('{speculative-config: \'{"method": "deepseek_mtp"}\'}', True),
        ("{speculative_config: 'no JSON'}", False),
    ],
)
def test_engines_that_predict_several_tokens(tmp_path: Path, flags: str, predicts: bool) -> None:
    config = load_config(write(tmp_path, SMALL + f"engines: {{vllm: {flags}}}\n"))
    assert config.engines.predicts is predicts


@pytest.mark.parametrize(
    ("media", "policy"),
    [
        ("none", "none"),
        ("data", "data"),
        ("[a.example.com, b.example.com]", "a.example.com,b.example.com"),
    ],
)
def test_media(tmp_path: Path, media: str, policy: str) -> None:
    config = load_config(write(tmp_path, SMALL + f"gateway: {{media: {media}}}\n"))
    assert config.gateway.media_policy == policy


@pytest.mark.parametrize("media", ["[]", "all", "['http://a.example.com']", "['*']"])
def test_media_from_no_host(tmp_path: Path, media: str) -> None:
    assert "gateway.media" in fault(tmp_path, SMALL + f"gateway: {{media: {media}}}\n")
