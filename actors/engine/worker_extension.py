"""Methods that vLLM adds to its workers for an engine (`--worker-extension-cls`)."""

from typing import Any


class EngineWorker:
    """Mixed into vLLM's worker class."""

    model_runner: Any
    rank: int

    def expertmesh_parameter_bytes(self) -> int:
        """Bytes of parameters and buffers that this worker holds."""
        model = self.model_runner.get_model()
        tensors = {t.data_ptr(): t for t in [*model.parameters(), *model.buffers()]}
        return sum(t.numel() * t.element_size() for t in tensors.values())

    def expertmesh_resume_requests(self) -> None:
        """From now on requests may come that another engine began."""
        from actors.vllm_plugin.resumed import RequestStates

        runner = self.model_runner
        # vLLM's second model runner has no such table and needs none.
        if hasattr(runner, "requests"):
            vocabulary = runner.model_config.get_vocab_size()
            sampler = runner.sampler.topk_topp_sampler
            runner.requests = RequestStates(sampler, vocabulary, runner.device)

    def expertmesh_trace_steps(self) -> None:
        """From now on sampled steps become spans."""
        from actors.vllm_plugin.traced_step import trace_steps

        trace_steps(self.model_runner, self.rank)

    def expertmesh_count_traffic(self) -> None:
        """From now on experts' assignments are counted by kind of traffic."""
        from actors.vllm_plugin.connection import traffic_counts
        from actors.vllm_plugin.traffic_steps import count_traffic

        count_traffic(self.model_runner, traffic_counts())

    def expertmesh_warm_shards(self) -> None:
        """Send rows through every expert of the mesh."""
        from actors.vllm_plugin.warm_shards import warm_shards

        warm_shards(self.model_runner.model_config.get_hidden_size())
