"""Generates greedily with plain vLLM after installing the CPU fixes; started by a test.

Arguments: model directory, number of tokens, prompts as JSON lists of token ids. The last line of
the output is a JSON object.
"""

import json
import os
import sys

from actors.deepseek_v4_cpu import install as v4_cpu


def main(model: str, num_tokens: str, prompts: str) -> None:
    installed = v4_cpu.install()
    again = v4_cpu.install()
    from vllm import LLM, SamplingParams, TokensPrompt
    from vllm.triton_utils import dispatcher

    llm = LLM(
        model=model,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=4,
        enable_prefix_caching=False,
    )
    requests = [TokensPrompt(prompt_token_ids=ids) for ids in json.loads(prompts)]
    sampling = SamplingParams(max_tokens=int(num_tokens), temperature=0, ignore_eos=True)
    outputs = llm.generate(requests, sampling, use_tqdm=False)
    result = {
        "installed": installed,
        "again": again,
        "registered": [name for name in v4_cpu.KERNELS if name in dispatcher._registry],
        "still_missing": [
            name
            for name, fix in v4_cpu.FIXES.items()
            if fix is not v4_cpu.add_metadata_kernels and fix()
        ],
        "tokens": [list(output.outputs[0].token_ids) for output in outputs],
    }
    print(json.dumps(result))


if __name__ == "__main__":
    # One process, one gibibyte of KV cache, and no plugin but the one under test.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = "1"
    os.environ["VLLM_PLUGINS"] = ""
    main(*sys.argv[1:])
