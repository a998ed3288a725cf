"""DeepSeek-V4 on CPU: the torch metadata kernels, and generation through plain vLLM."""

import json
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from actors.deepseek_v4_cpu import metadata_kernels as kernels
from actors.deepseek_v4_cpu.install import KERNELS
from tests.checkpoints.make import make_checkpoint

UNTOUCHED = -7
"""Filler of output buffers: what a kernel must leave where it does not write."""

quick = settings(max_examples=60, deadline=None)


@dataclass(frozen=True)
class Batch:
    """One step: per request its new tokens and the tokens before them; then padding tokens."""

    new_tokens: list[int]
    prefixes: list[int]
    padding: int
    block_size: int
    replay_start: list[int]
    seed: int

    @property
    def token_requests(self) -> list[int]:
        return [r for r, count in enumerate(self.new_tokens) for _ in range(count)]

    @property
    def positions(self) -> list[int]:
        return [
            prefix + i
            for prefix, count in zip(self.prefixes, self.new_tokens, strict=True)
            for i in range(count)
        ]

    @property
    def query_start_loc(self) -> Tensor:
        return torch.tensor([0, *self.new_tokens]).cumsum(0).int()

    @property
    def seq_lens(self) -> Tensor:
        pairs = zip(self.prefixes, self.new_tokens, strict=True)
        return torch.tensor([prefix + count for prefix, count in pairs], dtype=torch.int32)

    @property
    def block_table(self) -> Tensor:
        """Every request's blocks scattered over the cache [R, blocks]."""
        blocks = int(self.seq_lens.max()) // self.block_size + 2
        order = torch.randperm(
            len(self.new_tokens) * blocks, generator=torch.Generator().manual_seed(self.seed)
        )
        return order.view(-1, blocks).int()

    def slot(self, request: int, index: int) -> int:
        block = int(self.block_table[request, index // self.block_size])
        return block * self.block_size + index % self.block_size


@st.composite
def batches(draw: st.DrawFn) -> Batch:
    new_tokens = draw(st.lists(st.integers(1, 9), min_size=1, max_size=5))
    prefixes = draw(
        st.lists(st.integers(0, 40), min_size=len(new_tokens), max_size=len(new_tokens))
    )
    return Batch(
        new_tokens=new_tokens,
        prefixes=prefixes,
        padding=draw(st.integers(0, 4)),
        block_size=draw(st.sampled_from([1, 4, 16])),
        replay_start=[draw(st.integers(0, prefix)) for prefix in prefixes],
        seed=draw(st.integers(0, 99)),
    )


def filled(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.full(shape, UNTOUCHED, dtype=dtype)


@quick
@given(batches(), st.integers(0, 3))
def test_token_request_mapping(batch: Batch, spare: int) -> None:
    mapped = len(batch.token_requests)
    total = mapped + batch.padding
    out = filled(total + spare)
    kernels.token_request_mapping(
        batch.query_start_loc, out, len(batch.new_tokens), mapped, total, num_warps=4
    )
    expected = batch.token_requests + [0] * batch.padding + [UNTOUCHED] * spare
    assert out.tolist() == expected


def test_tokens_past_the_last_request_belong_to_it() -> None:
    out = filled(5)
    kernels.token_request_mapping(torch.tensor([0, 2, 3], dtype=torch.int32), out, 2, 5, 5)
    assert out.tolist() == [0, 0, 1, 1, 1]


@quick
@given(batches(), st.integers(1, 24), st.integers(0, 6), st.booleans())
def test_sliding_window_slots(batch: Batch, window: int, spare: int, extra_axis: bool) -> None:
    requests = batch.token_requests
    total = len(requests) + batch.padding
    offset = min(batch.new_tokens[0], total - 1)
    width = window + spare
    valid = torch.arange(total) < len(requests)
    # Padding tokens carry a request that does not exist: the kernel must not look it up.
    token_to_request = torch.tensor(requests + [99] * batch.padding, dtype=torch.int32)
    slots, lengths = filled(total - offset, width), filled(total - offset)
    kernels.sliding_window_slots(
        slots.unsqueeze(1) if extra_axis else slots,
        width,
        lengths,
        window,
        width,
        lengths,
        lengths,
        batch.query_start_loc,
        batch.seq_lens,
        token_to_request,
        valid,
        batch.block_table,
        batch.block_table.shape[1],
        batch.block_size,
        torch.tensor(batch.replay_start, dtype=torch.int32),
        offset,
        False,
        1024,
    )
    for row, token in enumerate(range(offset, total)):
        expected = []
        if valid[token]:
            request, position = requests[token], batch.positions[token]
            oldest = max(0, position - window + 1, batch.replay_start[request])
            expected = [batch.slot(request, p) for p in range(oldest, position + 1)]
        assert lengths[row] == len(expected)
        assert slots[row].tolist() == expected + [-1] * (width - len(expected))


@quick
@given(batches(), st.integers(1, 24))
def test_prefill_gather_lengths(batch: Batch, window: int) -> None:
    decodes = len(batch.new_tokens) // 2
    prefills = len(batch.new_tokens) - decodes
    out = filled(prefills)
    kernels.prefill_gather_lengths(
        out,
        batch.seq_lens,
        batch.query_start_loc,
        torch.tensor(batch.replay_start, dtype=torch.int32),
        prefills,
        decodes,
        window,
        8,
    )
    expected = []
    for request in range(decodes, len(batch.new_tokens)):
        before = range(batch.replay_start[request], batch.prefixes[request])
        expected.append(
            batch.new_tokens[request] + len(before[-(window - 1) :] if window > 1 else [])
        )
    assert out.tolist() == expected


@quick
@given(batches(), st.sampled_from([2, 4, 128]), st.sets(st.integers(0, 44)))
def test_compressed_slots(batch: Batch, ratio: int, slotless: set[int]) -> None:
    pad = -1
    requests = batch.token_requests
    own_slots = torch.tensor([pad if t in slotless else t for t in range(len(requests))])
    out = filled(len(requests) + batch.padding, dtype=torch.int64)
    kernels.compressed_slots(
        out,
        own_slots,
        batch.query_start_loc,
        batch.seq_lens,
        batch.block_table,
        batch.block_table.shape[1],
        batch.block_size,
        1,
        1,
        ratio,
        pad,
        1024,
    )
    for token, (request, position) in enumerate(zip(requests, batch.positions, strict=True)):
        completes = position % ratio == ratio - 1 and token not in slotless
        assert out[token] == (batch.slot(request, position // ratio) if completes else pad)
    assert (out[len(requests) :] == UNTOUCHED).all()


@quick
@given(batches(), st.sampled_from([2, 4, 128]), st.data())
def test_indexer_prefill_bounds(batch: Batch, ratio: int, data: st.DataObject) -> None:
    requests = batch.token_requests
    query_from = data.draw(st.integers(0, len(requests)))
    query_to = data.draw(st.integers(query_from, len(requests)))
    states = [int(length) // ratio for length in batch.seq_lens]
    starts = torch.tensor([0, *states]).cumsum(0).int()
    owners = filled(sum(states))
    begin, end = filled(query_to - query_from), filled(query_to - query_from)
    kernels.indexer_prefill_bounds(
        batch.query_start_loc,
        batch.seq_lens,
        starts,
        starts,
        owners,
        begin,
        end,
        query_from,
        query_to,
        0,
        1,
        1,
        1024,
        ratio,
    )
    assert owners.tolist() == [r for r, count in enumerate(states) for _ in range(count)]
    for row, token in enumerate(range(query_from, query_to)):
        first = int(starts[requests[token]])
        assert begin[row] == first
        assert end[row] == first + (batch.positions[token] + 1) // ratio


def test_refusals_say_what_to_change() -> None:
    with pytest.raises(NotImplementedError, match=r"speculative decoding.*--speculative-config"):
        kernels.refuse_speculative_decoding(torch.zeros(1), 2)
    one = torch.ones(1, dtype=torch.int32)
    loc = torch.tensor([0, 1], dtype=torch.int32)
    with pytest.raises(NotImplementedError, match="context parallelism"):
        kernels.compressed_slots(one, one, loc, one, one[None], 1, 1, 2, 1, 4, -1, 1024)
    valid = one.bool()
    with pytest.raises(NotImplementedError, match="image"):
        kernels.sliding_window_slots(
            one[None],
            1,
            one,
            1,
            1,
            one,
            one,
            loc,
            one,
            one,
            valid,
            one[None],
            1,
            1,
            one,
            0,
            True,
            8,
        )


AGREEMENT = 0.9
"""Least share of generated tokens that are also the float32 reference's first choice.

vLLM rounds activations to bf16 and keeps its cache in FP8. Experts swapped with their neighbours
would bring the share to about 0.7, experts left out to 0.8.
"""


@pytest.mark.vllm
def test_vllm_generates_what_transformers_would(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    # Same numbers in both formats; transformers reads the bf16 one.
    released = make_checkpoint("deepseek_v4_mxfp4", tmp_path / "mxfp4")
    reference = make_checkpoint("deepseek_v4_bf16", tmp_path / "bf16")
    # Long enough to leave the sliding window and to complete a state of 128 tokens.
    long_prompt = "It was the best of times, it was the worst of times. " * 4
    prompts = [list(text.encode()) for text in ("The quick", "def main():", "x = [", long_prompt)]
    run = subprocess.run(
        [
            sys.executable,
            str(Path(__file__).with_name("generate_deepseek_v4.py")),
            str(released),
            "32",
            json.dumps(prompts),
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert run.returncode == 0, run.stderr[-3000:]
    result = json.loads(run.stdout.splitlines()[-1])
    assert result["again"] == result["installed"]
    assert "complete tile schedule" in result["installed"]
    assert result["still_missing"] == []
    if "torch metadata kernels" in result["installed"]:
        assert result["registered"] == list(KERNELS)

    model = AutoModelForCausalLM.from_pretrained(
        reference, dtype=torch.float32, attn_implementation="eager"
    )
    agreeing: list[bool] = []
    for prompt, tokens in zip(prompts, result["tokens"], strict=True):
        with torch.no_grad():
            logits = model(torch.tensor([prompt + tokens]), use_cache=False).logits[0]
        choices = logits[len(prompt) - 1 : -1].argmax(-1)
        agreeing += (choices == torch.tensor(tokens)).tolist()
    share = sum(agreeing) / len(agreeing)
    assert len(agreeing) == 128
    assert share >= AGREEMENT, f"{share:.3f} of the tokens agree"
