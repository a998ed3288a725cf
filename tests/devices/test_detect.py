"""Whose devices a machine has, over made-up snapshots, and what a real one of this machine says."""

import dataclasses
from pathlib import Path

import pytest

from actors.devices.catalogue import UnknownDevice, find_family, load_catalogue
from actors.devices.detect import AmbiguousDevices, Step, detect, device_indices
from actors.devices.snapshot import Snapshot, read_labels, take_snapshot

NOTHING = Snapshot()

EVIDENCE = {
    Step.OPERATOR: ("ascend", {"operator": "ascend"}),
    Step.LABEL: ("cambricon", {"labels": {"expertmesh.io/vendor": "cambricon"}}),
    Step.POD: ("hygon", {"pod_resources": ("hygon.com/dcu",)}),
    Step.TORCH: ("nvidia", {"torch_devices": {"cuda": ("NVIDIA H200",)}}),
    Step.HOST: ("kunlunxin", {"files": frozenset({"/dev/xpu0"})}),
}


def test_the_best_evidence_decides() -> None:
    """With all of it there, each kind decides as soon as those before it are gone."""
    seen = NOTHING
    for _, fields in EVIDENCE.values():
        seen = dataclasses.replace(seen, **fields)
    for step, (vendor, fields) in EVIDENCE.items():
        found = detect(seen)
        assert (found.vendor, found.step) == (vendor, step)
        blank = {name: getattr(NOTHING, name) for name in fields}
        seen = dataclasses.replace(seen, **blank)
    assert detect(seen).vendor == "cpu"


@pytest.mark.parametrize(
    ("seen", "vendor"),
    [
        (Snapshot(labels={"ray.io/accelerator-type": "H200"}), "nvidia"),
        (Snapshot(labels={"ray.io/accelerator-type": "Ascend910B"}), "ascend"),
        (Snapshot(labels={"ray.io/accelerator-type": "MXC550"}), "metax"),
        (Snapshot(labels={"ray.io/accelerator-type": "AMD-Instinct-MI300X-OAM"}), "amd"),
        (Snapshot(labels={"nvidia.com/gpu.product": "H20"}), "nvidia"),
        (Snapshot(labels={"accelerator": "huawei-Ascend910"}), "ascend"),
        (Snapshot(labels={"Model": "MLU590-M9"}), "cambricon"),
        (Snapshot(labels={"Model": "T-800", "accelerator": "yes"}), "cpu"),
        (Snapshot(pod_resources=("cpu", "iluvatar.ai/BI-V150-vgpu")), "iluvatar"),
        (Snapshot(torch_devices={"cuda": ("BW1000",)}, torch_build="2.5.1+das.dtk2504"), "hygon"),
        (Snapshot(torch_devices={"cuda": ("X",)}, torch_build="2.8.0+metax3.5.3.9"), "metax"),
        (Snapshot(torch_devices={"cuda": ("X",)}, packages=frozenset({"torch_xmlir"})),
         "kunlunxin"),
        (Snapshot(torch_devices={"npu": ("?",)}, packages=frozenset({"torch_npu"})), "ascend"),
        (Snapshot(files=frozenset({"/dev/kfd"})), "amd"),
        (Snapshot(files=frozenset({"/dev/kfd", "/dev/mkfd"})), "hygon"),
        (Snapshot(files=frozenset({"/dev/biren/card_0"})), "biren"),
        (Snapshot(files=frozenset({"/dev/mtgpu.0"})), "moore-threads"),
        (Snapshot(commands=frozenset({"cnmon"})), "cambricon"),
        (Snapshot(files=frozenset({"/dev/gcu1"}), commands=frozenset({"nvidia-smi"})), "enflame"),
    ],
)  # fmt: skip
def test_each_vendor_is_known_by_its_names(seen: Snapshot, vendor: str) -> None:
    assert detect(seen).vendor == vendor


@pytest.mark.parametrize(
    "seen",
    [
        Snapshot(torch_devices={"cuda": ("Z100",)}, torch_build="2.13.0"),
        Snapshot(torch_devices={"cuda": ("Z100",)}, torch_build="2.13.0+cu130"),
        Snapshot(labels={"ray.io/accelerator-type": "GPU"}),
        Snapshot(packages=frozenset({"torch_npu"}), torch_build="2.13.0+rocm7.0"),
        Snapshot(commands=frozenset({"xpu-smi"})),
    ],
)
def test_what_several_vendors_share_says_nothing(seen: Snapshot) -> None:
    """Above all, a device called cuda is not NVIDIA's for that."""
    assert detect(seen).step is Step.NOTHING


def test_two_vendors_at_once_are_for_the_operator_to_tell() -> None:
    both = Snapshot(files=frozenset({"/dev/nvidia0", "/dev/davinci0"}))
    with pytest.raises(AmbiguousDevices, match=r"ascend \(.*\) and nvidia \(.*name one in pools"):
        detect(both)
    assert detect(dataclasses.replace(both, operator="ascend")).vendor == "ascend"


def test_a_wrong_word_is_not_passed_over() -> None:
    with pytest.raises(UnknownDevice, match="did you mean cambricon"):
        detect(Snapshot(labels={"expertmesh.io/vendor": "cambricn"}))


def test_device_files_are_counted_by_index() -> None:
    files = {f"/dev/nvidia{name}" for name in ("0", "10", "2", "ctl", "-uvm", "2x")}
    assert device_indices(Snapshot(files=frozenset(files)), find_family("nvidia")) == [0, 2, 10]


def test_labels_of_a_pod_are_read_as_kubernetes_writes_them(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text('app="mesh"\nexpertmesh.io/vendor="ascend"\n')
    assert read_labels(file) == {"app": "mesh", "expertmesh.io/vendor": "ascend"}
    assert read_labels(tmp_path / "none") == {}


def test_a_snapshot_takes_the_environment_and_the_pods_labels(tmp_path: Path) -> None:
    file = tmp_path / "labels"
    file.write_text('expertmesh.io/vendor="ascend"\n')
    environment = {
        "EXPERTMESH_VENDOR": "biren",
        "EXPERTMESH_POD_RESOURCES": "cpu=4, birentech.com/gpu=2",
    }
    seen = take_snapshot(
        load_catalogue().values(),
        environment=environment,
        pod_labels_file=file,
        node_labels={"rack": "7"},
        ask_torch=False,
    )
    assert seen.operator == "biren"
    assert seen.labels == {"rack": "7", "expertmesh.io/vendor": "ascend"}
    assert seen.pod_resources == ("cpu", "birentech.com/gpu")
    assert seen.torch_devices == {}


def test_a_snapshot_of_this_machine_can_be_decided_upon() -> None:
    """Whatever it has: with torch asked, nothing is raised and the vendor is in the catalogue."""
    seen = take_snapshot(load_catalogue().values(), environment={})
    assert seen.torch_build.startswith("2.")
    assert detect(seen).vendor in load_catalogue()
