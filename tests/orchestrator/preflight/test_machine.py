"""Machine checks, on made-up machines."""

from pathlib import Path

import pytest

from actors.devices.detect import Detection, Step
from orchestrator.config.pools import PoolConfig
from orchestrator.preflight import machine
from orchestrator.preflight.finding import Level

AVX2 = frozenset({"avx2"})
AVX512 = AVX2 | {"avx512f"}
BF16 = AVX512 | {"avx512_bf16"}


@pytest.mark.parametrize(
    ("flags", "level", "word"),
    [
        (frozenset(), Level.FAILURE, "no AVX2"),
        (AVX2, Level.WARNING, "kept as bf16"),
        (AVX512, Level.WARNING, "kept as bf16"),
        (BF16, Level.OK, "no AMX"),
        (BF16 | {"amx_tile", "amx_bf16"}, Level.OK, ", AMX"),
    ],
)
def test_cpu(flags: frozenset[str], level: Level, word: str) -> None:
    finding = machine.check_cpu(flags, "x86_64")
    assert finding.level is level
    assert word in finding.message


def test_other_architectures_are_allowed_with_a_warning() -> None:
    assert machine.check_cpu(frozenset(), "aarch64").level is Level.WARNING


def test_cpu_flags_are_those_of_the_first_cpu(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("model name\t: X\nflags\t\t: fpu avx2\n\nflags\t\t: other\n")
    assert machine.read_cpu_flags(cpuinfo) == {"fpu", "avx2"}
    assert machine.read_cpu_flags(tmp_path / "none") == frozenset()


@pytest.mark.parametrize(
    ("free_mib", "level"), [(32, Level.FAILURE), (64, Level.WARNING), (1024, Level.OK)]
)
def test_shared_memory(free_mib: int, level: Level) -> None:
    finding = machine.check_shared_memory(free_mib * 2**20)
    assert finding.level is level
    assert ("--shm-size" in finding.fix) is (level is not Level.OK)


@pytest.mark.parametrize(
    ("limit", "level"), [(256, Level.WARNING), (-1, Level.OK), (65536, Level.OK)]
)
def test_open_files(limit: int, level: Level) -> None:
    assert machine.check_open_files(limit).level is level


def test_devices_that_are_not_seen_here_are_told() -> None:
    pools = {
        "h20": PoolConfig(vendor="nvidia", device="cuda"),
        "a2": PoolConfig(vendor="ascend", device="npu"),
        "slow": PoolConfig(vendor="ascend", emulated=True, speed=0.5),
        "cold": PoolConfig(vendor="cpu"),
    }
    seen = Detection("nvidia", Step.HOST, "8 device files are there")
    (finding,) = machine.check_devices(pools, seen)
    assert finding.level is Level.WARNING
    assert finding.message == (
        "pools.a2 asks for npu of ascend, which is not seen on this machine "
        "(8 device files are there)"
    )
    assert "cluster.ray_address" in finding.fix
