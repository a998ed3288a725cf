"""Methods that vLLM adds to its workers for an engine (`--worker-extension-cls`)."""

from typing import Any


class ParameterReport:
    """Mixed into vLLM's worker class: tells what the worker's share of the model weighs."""

    model_runner: Any

    def expertmesh_parameter_bytes(self) -> int:
        """Bytes of parameters and buffers that this worker holds."""
        model = self.model_runner.get_model()
        tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
        return sum(t.numel() * t.element_size() for t in tensors.values())
