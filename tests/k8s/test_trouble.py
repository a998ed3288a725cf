"""Why a pod does not start, in one line."""

import pytest

from orchestrator.kubernetes.trouble import trouble_of
from tests.k8s.pod_states import unschedulable, waiting


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (
            unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
            "no node has nvidia.com/gpu to give (0/3 nodes are available: 3 Insufficient "
            "nvidia.com/gpu.): add nodes that have it, or install its device plugin",
        ),
        (unschedulable("2 had\ntaints."), "no node takes it (2 had taints.)"),
        (
            waiting("ImagePullBackOff", "Back-off pulling\nimage"),
            "its image cannot be pulled (Back-off pulling image)",
        ),
        (
            waiting("CreateContainerConfigError", 'secret "chat-keys" not found'),
            'it lacks something it refers to (secret "chat-keys" not found)',
        ),
        (
            waiting("CrashLoopBackOff", first=True, code=2),
            "it ends again and again (CrashLoopBackOff; exit code 2)",
        ),
    ],
)
def test_what_does_not_pass_by_itself_is_explained(status, words):
    pod = {"metadata": {"name": "chat-cpu-1"}, "status": status}
    assert trouble_of(pod) == f"pod chat-cpu-1: {words}"


@pytest.mark.parametrize("status", [{}, waiting("ContainerCreating"), {"conditions": []}])
def test_what_only_takes_time_is_no_trouble(status):
    assert trouble_of({"metadata": {"name": "chat-cpu-1"}, "status": status}) == ""
