"""What an engine of a mesh refuses, in vLLM's own configuration."""

import pytest

from tests.checkpoints.make import make_checkpoint

pytestmark = pytest.mark.vllm


@pytest.fixture(scope="module")
def config_of(tmp_path_factory):
    from vllm.engine.arg_utils import EngineArgs

    model = str(make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model")))
    return lambda **flags: EngineArgs(model=model, **flags).create_engine_config()


@pytest.mark.parametrize(
    ("flag", "flags"),
    [
        ("enable_expert_parallel", {"enable_expert_parallel": True, "tensor_parallel_size": 2}),
        ("pipeline_parallel_size", {"pipeline_parallel_size": 2}),
        ("data_parallel_size", {"data_parallel_size": 2}),
        ("enable_lora", {"enable_lora": True}),
        ("enable_lora", {"enable_lora": True, "lora_target_modules": ["qkv_proj", "experts"]}),
    ],
)
def test_refused_by_name_in_one_line(config_of, flag, flags):
    from actors.vllm_plugin.vllm_config import refuse_unsupported

    with pytest.raises(ValueError, match=f"mesh does not support: .*{flag}: ") as refused:
        refuse_unsupported(config_of(**flags))
    assert "\n" not in str(refused.value)


def test_a_drafter_with_a_model_of_its_own_is_refused(config_of):
    from actors.vllm_plugin.vllm_config import refuse_unsupported

    config = config_of()
    drafter = {"method": "draft_model", "model": config.model_config.model}
    config = config_of(speculative_config=drafter | {"num_speculative_tokens": 1})
    with pytest.raises(ValueError, match="speculative_config: of drafters only n-gram, suffix"):
        refuse_unsupported(config)


@pytest.mark.parametrize(
    "flags",
    [
        {"enable_lora": True, "lora_target_modules": ["qkv_proj", "o_proj"]},
        {"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}},
    ],
)
def test_what_stays_in_the_engine_is_supported(config_of, flags):
    from actors.vllm_plugin.vllm_config import refuse_unsupported

    refuse_unsupported(config_of(**flags))


def test_tensor_parallelism_is_supported(config_of):
    from actors.vllm_plugin.vllm_config import refuse_unsupported, use_mesh_scheduler

    config = config_of(tensor_parallel_size=2)
    refuse_unsupported(config)
    use_mesh_scheduler(config)
    assert config.scheduler_config.get_scheduler_cls().__name__ == "MeshScheduler"


def test_asynchronous_scheduling_stays(config_of):
    from actors.vllm_plugin.vllm_config import use_mesh_scheduler

    config = config_of()
    config.scheduler_config.async_scheduling = True
    use_mesh_scheduler(config)
    assert config.scheduler_config.get_scheduler_cls().__name__ == "MeshAsyncScheduler"


def test_the_mesh_splits_cuda_graphs():
    from vllm.config import CompilationConfig, CUDAGraphMode

    from actors.vllm_plugin.vllm_config import MESH_OPERATORS, split_graphs

    for mode in (CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL, CUDAGraphMode.PIECEWISE):
        config = CompilationConfig(cudagraph_mode=mode, splitting_ops=["vllm::unified_attention"])
        split_graphs(config)
        split_graphs(config)
        assert config.splitting_ops == ["vllm::unified_attention", *MESH_OPERATORS]
        assert config.cudagraph_mode is CUDAGraphMode.PIECEWISE


def test_graphs_that_cannot_be_split_are_off():
    from vllm.config import CompilationConfig, CUDAGraphMode

    from actors.vllm_plugin.vllm_config import split_graphs

    config = CompilationConfig(cudagraph_mode=CUDAGraphMode.FULL, splitting_ops=[])
    split_graphs(config)
    assert config.cudagraph_mode is CUDAGraphMode.NONE


def test_the_operators_have_these_names():
    import torch
    import vllm.model_executor.layers.fused_moe.runner.moe_runner  # noqa: F401 - and these

    from actors.vllm_plugin import opaque_ops  # noqa: F401 - defines them
    from actors.vllm_plugin.vllm_config import MESH_OPERATORS

    for name in MESH_OPERATORS:
        library, _, operator = name.partition("::")
        assert hasattr(getattr(torch.ops, library), operator)


def test_vllms_scheduler_leaves_batch_requests_out_of_a_step_that_begins_an_online_prompt(
    config_of,
):
    import torch
    from vllm.sampling_params import SamplingParams
    from vllm.v1.kv_cache_interface import FullAttentionSpec, KVCacheConfig, KVCacheGroupSpec
    from vllm.v1.outputs import ModelRunnerOutput
    from vllm.v1.request import Request
    from vllm.v1.structured_output import StructuredOutputManager

    from actors.vllm_plugin.scheduler import MeshScheduler

    config = config_of(
        scheduling_policy="priority",
        max_num_seqs=8,
        max_num_batched_tokens=160,
        max_model_len=160,
        enable_prefix_caching=False,
    )
    config.cache_config.num_gpu_blocks = 100
    spec = FullAttentionSpec(block_size=16, num_kv_heads=1, head_size=8, dtype=torch.bfloat16)
    blocks = KVCacheConfig(100, [], [KVCacheGroupSpec(["layer"], spec)])
    scheduler = MeshScheduler(config, blocks, StructuredOutputManager(config), block_size=16)

    def add(name, priority, prompt):
        sampling = SamplingParams(max_tokens=20, ignore_eos=True)
        scheduler.add_request(Request(name, [1] * prompt, sampling, None, priority=priority))

    def step():
        """Tokens of each request; those whose prompt is done put one out."""
        scheduled = scheduler.schedule()
        tokens = scheduled.num_scheduled_tokens
        index = {name: number for number, name in enumerate(tokens)}
        put_out = [[] if scheduler.requests[n].is_prefill_chunk else [7] for n in tokens]
        scheduler.update_from_output(scheduled, ModelRunnerOutput(list(tokens), index, put_out))
        return tokens

    add("batch", 100, 100)
    assert step() == {"batch": 100}  # nobody online: all at once
    add("first", 0, 20)
    assert step() == {"first": 20}
    add("long", 100, 60)
    assert step() == {"batch": 1, "first": 1, "long": 9}
    add("second", 0, 30)
    assert step() == {"first": 1, "second": 30}
    # The prompt that was begun before takes no tokens of the request behind it.
    assert step() == {"batch": 1, "first": 1, "second": 1, "long": 9}
