"""Torch versions of the metadata kernels that DeepSeek-V4 launches on CPU.

vLLM 0.32 writes them in Triton and offers no CPU fallback, so without a Triton CPU backend the
model stops at its first step. They only compute indices (which cache slots a token may read,
where its compressed state goes), a few integers per token: torch is quick enough.

Each function takes the arguments of the kernel it stands for, in that kernel's order, and writes
its outputs in place. Common shapes: R requests, T tokens; `query_start_loc` [R + 1] and `seq_lens`
[R] are int32; `block_table` [R, blocks] maps a request's logical cache blocks to physical ones.
Unused arguments of the originals (strides, launch sizes) start with an underscore.
"""

from typing import Never

import torch
from torch import Tensor


def token_request_mapping(
    query_start_loc: Tensor,
    requests: Tensor,
    num_reqs: int,
    num_mapped: int,
    num_tokens: int,
    **_launch_options: int,
) -> None:
    """Write the request of each token to `requests` [>= num_tokens].

    Tokens at or past `num_mapped` (padding) get 0; tokens past the last request get the last.
    Stands for `vllm.v1.attention.ops.metadata._token_request_mapping_kernel`.
    """
    mapped = min(num_mapped, num_tokens)
    requests[mapped:num_tokens] = 0
    requests[:mapped] = _requests_of(query_start_loc[: num_reqs + 1], mapped)


def sliding_window_slots(
    slots: Tensor,
    _slots_stride: int,
    lengths: Tensor,
    window_size: int,
    width: int,
    _left_visible: Tensor,
    _right_visible: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    token_to_request: Tensor,
    is_valid: Tensor,
    block_table: Tensor,
    _block_table_stride: int,
    block_size: int,
    replay_start: Tensor,
    token_offset: int,
    has_image: bool,
    _launch_block: int,
) -> None:
    """Write the cache slots in each token's sliding window, and how many they are.

    Token i + `token_offset` fills row i of `slots` [T, width] (or [T, 1, width]) from the left,
    oldest position first, -1 after the end, and `lengths[i]`. Positions below the request's
    `replay_start` [R] are not visible; an invalid (padding) token sees nothing.
    Stands for `sparse_swa.ComputeSWAIndicesAndLensKernel.kernel`. Raises NotImplementedError for
    image spans, whose tokens see each other in both directions.
    """
    if has_image:
        _unsupported("image input", "send text only")
    rows = min(slots.shape[0], is_valid.shape[0] - token_offset)
    tokens = torch.arange(token_offset, token_offset + rows)
    valid = is_valid[tokens]
    # A padding token's request may be stale: look at request 0 and mask the result.
    request = torch.where(valid, token_to_request[tokens], 0).long()
    position = _positions_of(tokens, request, query_start_loc, seq_lens)
    start = (position - (window_size - 1)).clamp(min=0).maximum(replay_start[request])
    length = torch.where(valid, position + 1 - start, 0)
    column = torch.arange(width)
    live = column < length[:, None]
    visible = torch.where(live, start[:, None] + column, 0)
    row_slots = _slots_of(visible, request[:, None], block_table, block_size)
    slots[:rows].view(rows, -1)[:, :width] = torch.where(live, row_slots, -1).to(slots.dtype)
    lengths[:rows] = length.to(lengths.dtype)


def prefill_gather_lengths(
    lengths: Tensor,
    seq_lens: Tensor,
    query_start_loc: Tensor,
    replay_start: Tensor,
    num_prefills: int,
    num_decodes: int,
    window_size: int,
    _launch_block: int,
) -> None:
    """Write how many cached positions each prefill must gather to `lengths` [num_prefills].

    That is its new tokens plus the part of the window before them that exists. Prefills follow
    the decodes in the batch. Stands for `sparse_swa.ComputePrefillMetadataKernel.kernel`.
    """
    prefills = slice(num_decodes, num_decodes + num_prefills)
    new_tokens = query_start_loc.diff()[prefills]
    prefix = (seq_lens[prefills] - new_tokens - replay_start[prefills]).clamp(min=0)
    lengths[:num_prefills] = new_tokens + prefix.clamp(max=window_size - 1)


def compressed_slots(
    compressed: Tensor,
    slot_mapping: Tensor,
    query_start_loc: Tensor,
    seq_lens: Tensor,
    block_table: Tensor,
    _block_table_stride: int,
    block_size: int,
    context_parallel_size: int,
    _context_parallel_interleave: int,
    compress_ratio: int,
    pad_id: int,
    _launch_block: int,
) -> None:
    """Write the slot of the compressed state that each token completes to `compressed` [T].

    Only the last of every `compress_ratio` positions completes one; the other tokens, and those
    without a slot of their own in `slot_mapping` [T], get `pad_id`. `block_size` counts states.
    Stands for `compressor_utils.CompressedSlotMappingKernel.kernel`. Raises NotImplementedError
    under decode context parallelism.
    """
    _require_one_context_rank(context_parallel_size)
    requests = block_table.shape[0]
    tokens = torch.arange(min(int(query_start_loc[requests]), compressed.shape[0]))
    request = _requests_of(query_start_loc[: requests + 1], len(tokens))
    position = _positions_of(tokens, request, query_start_loc, seq_lens)
    completes = (position + 1) % compress_ratio == 0
    completes &= slot_mapping[: len(tokens)] != pad_id
    state = torch.where(completes, position // compress_ratio, 0)
    slots = _slots_of(state, request, block_table, block_size)
    compressed[: len(tokens)] = torch.where(completes, slots, pad_id)


def indexer_prefill_bounds(
    query_start_loc: Tensor,
    seq_lens: Tensor,
    compressed_start: Tensor,
    row_start: Tensor,
    state_to_request: Tensor,
    bound_start: Tensor,
    bound_end: Tensor,
    query_from: int,
    query_to: int,
    _context_parallel_rank: int,
    context_parallel_size: int,
    _context_parallel_interleave: int,
    _launch_block: int,
    compress_ratio: int,
) -> None:
    """Write which compressed states each prefill token may score in the indexer.

    Token t of `query_from <= t < query_to` sees the states `bound_start[t - query_from]` up to
    (excluding) `bound_end[...]` of the gathered buffer, where request r's states begin at
    `row_start[r]`; `state_to_request` [compressed_start[R]] gets the request of each state.
    Stands for `indexer.BuildPrefillChunkMetadataKernel.kernel`. Raises NotImplementedError under
    decode context parallelism.
    """
    _require_one_context_rank(context_parallel_size)
    requests = seq_lens.shape[0]
    tokens = torch.arange(query_from, query_to)
    request = _requests_of(query_start_loc, query_to)[query_from:]
    position = _positions_of(tokens, request, query_start_loc, seq_lens)
    start = row_start[request]
    bound_start[: len(tokens)] = start
    bound_end[: len(tokens)] = start + (position + 1) // compress_ratio
    states = compressed_start[: requests + 1].diff().long()
    filled = torch.repeat_interleave(torch.arange(requests), states)
    state_to_request[: len(filled)] = filled.to(state_to_request.dtype)


def refuse_speculative_decoding(*_args: object, **_kwargs: object) -> Never:
    """Stands for the kernels that only speculative decoding launches. Always raises."""
    _unsupported("speculative decoding", "start vLLM without --speculative-config")


def _require_one_context_rank(world_size: int) -> None:
    if world_size != 1:
        _unsupported(
            "decode context parallelism", "start vLLM with --decode-context-parallel-size 1"
        )


def _unsupported(what: str, fix: str) -> Never:
    raise NotImplementedError(f"DeepSeek-V4 on CPU without Triton has no {what}: {fix}")


def _requests_of(query_start_loc: Tensor, num_tokens: int) -> Tensor:
    """Request of each of the first `num_tokens` tokens [num_tokens], at most the last request."""
    tokens = torch.arange(num_tokens, dtype=query_start_loc.dtype)
    ends = query_start_loc[1:].contiguous()
    return torch.searchsorted(ends, tokens, right=True).clamp_(max=len(ends) - 1)


def _positions_of(
    tokens: Tensor, request: Tensor, query_start_loc: Tensor, seq_lens: Tensor
) -> Tensor:
    """Position of each token in its request's sequence [T], int64."""
    # A step's new tokens are the last ones of the sequence.
    return tokens + (seq_lens[request] - query_start_loc[request + 1])


def _slots_of(index: Tensor, request: Tensor, block_table: Tensor, block_size: int) -> Tensor:
    """Cache slot of the entry `index` of `request` (shapes broadcast), int64."""
    block = block_table[request, index // block_size].long()
    return block * block_size + index % block_size
