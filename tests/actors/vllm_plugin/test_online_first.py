"""What batch requests leave of a step to online ones."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from actors.vllm_plugin.online_first import RECENT_S, OnlineFirst, StepLimits

FULL = StepLimits(sequences=64, tokens=2048)
ONLINE, BATCH = 0, 100


@dataclass(frozen=True)
class Request:
    """prompt: its tokens; computed: of those and of what came after."""

    priority: int
    prompt: int = 32
    num_computed_tokens: int = 0
    output: int = 0
    num_output_placeholders: int = 0

    @property
    def num_tokens_with_spec(self):
        return self.prompt + self.output

    @property
    def is_prefill_chunk(self):
        return self.num_computed_tokens < self.prompt


def decoding(priority, count=1):
    return [Request(priority, num_computed_tokens=40, output=9)] * count


def beside_online(running=(), waiting=(), now_s=1.0):
    """Limits when an online request was there a second ago."""
    first = OnlineFirst(FULL)
    first.limits(decoding(ONLINE), [], 0.0)
    return first.limits(running, waiting, now_s)


def test_without_online_requests_batch_requests_have_everything():
    assert OnlineFirst(FULL).limits(decoding(BATCH, 64), [Request(BATCH)] * 9, 0.0) == FULL
    assert beside_online(decoding(BATCH, 64), now_s=RECENT_S + 1) == FULL


def test_batch_requests_leave_sequences_to_those_that_may_come():
    assert beside_online(decoding(BATCH, 3), [Request(BATCH)] * 99).sequences == 56


def test_online_requests_take_them_and_batch_requests_do_not():
    """As many more may run as there are online requests, which are at the head of the queue; half
    of the eighth is kept free."""
    waiting = [Request(ONLINE)] * 5 + [Request(BATCH)] * 99
    assert beside_online(decoding(BATCH, 56), waiting).sequences == 61
    assert beside_online(decoding(BATCH, 56) + decoding(ONLINE, 5), waiting[:2]).sequences == 63
    assert beside_online(decoding(BATCH, 56), [Request(ONLINE)] * 99).sequences == 64
    few, many = decoding(ONLINE, 2), decoding(ONLINE, 6)
    assert beside_online(decoding(BATCH, 50) + few, [Request(BATCH)] * 99).sequences == 58
    assert beside_online(decoding(BATCH, 50) + many, [Request(BATCH)] * 99).sequences == 60


def test_prompts_of_batch_requests_are_computed_a_few_tokens_at_a_time():
    limits = beside_online(decoding(BATCH, 40), [Request(BATCH)] * 24)
    assert limits.tokens == 2048 // 16
    begun = [Request(BATCH, prompt=1000, num_computed_tokens=128)]
    assert beside_online(decoding(BATCH, 40) + begun).tokens == 2048 // 16
    # Where more decode as many prompts' tokens as that, or their number would fall.
    assert beside_online(decoding(BATCH, 100)).tokens == 100 + 100


def test_a_step_that_begins_an_online_prompt_leaves_batch_requests_out():
    running = decoding(BATCH, 40) + decoding(ONLINE, 3)
    waiting = [Request(ONLINE, prompt=700), Request(BATCH)]
    assert beside_online(running, waiting) == StepLimits(60, 703, online_only=True)
    begun = [Request(ONLINE, prompt=700, num_computed_tokens=100)]
    assert beside_online(running + begun) == StepLimits(60, 603, online_only=True)
    # Nobody is left out, nothing can begin, nothing begins.
    assert not beside_online(decoding(ONLINE, 3), waiting).online_only
    assert not beside_online(decoding(BATCH, 64), waiting).online_only
    assert not beside_online(running, [Request(BATCH)]).online_only
    assert beside_online(waiting=[Request(ONLINE, prompt=9000)]).tokens == FULL.tokens


def test_batch_requests_are_left_out_of_no_two_steps_on_end():
    first, waiting = OnlineFirst(FULL), [Request(ONLINE)]
    alone = [first.limits(decoding(BATCH), waiting, n / 1000).online_only for n in range(6)]
    assert alone == [True, False] * 3


def test_batch_requests_are_left_out_of_an_eighth_of_the_time_in_the_long_run():
    first, now_s, without_s = OnlineFirst(FULL), 0.0, 0.0
    while now_s < 100:
        alone = first.limits(decoding(BATCH), [Request(ONLINE)], now_s).online_only
        took_s = 0.06 if alone else 0.08
        now_s += took_s
        without_s += took_s if alone else 0.0
    assert 0.1 < without_s / now_s < 1 / 8 + 0.01


def test_prompts_that_cannot_be_split_are_not():
    first = OnlineFirst(FULL, splits_prompts=False)
    waiting = [Request(ONLINE), Request(BATCH, prompt=1500)]
    assert first.limits(decoding(BATCH), waiting, 0.0) == StepLimits(57, FULL.tokens)


@given(
    st.integers(1, 300),
    st.integers(1, 4096),
    st.lists(st.sampled_from([ONLINE, BATCH]), max_size=300),
    st.lists(st.sampled_from([ONLINE, BATCH]), max_size=30),
)
def test_every_step_has_room_and_none_has_more_than_the_engine(sequences, tokens, run, wait):
    full = StepLimits(sequences, tokens)
    running = [request for priority in run[:sequences] for request in decoding(priority)]
    waiting = [Request(priority) for priority in sorted(wait)]
    limits = OnlineFirst(full).limits(running, waiting, 0.0)
    assert 1 <= limits.sequences <= sequences
    assert 1 <= limits.tokens <= tokens
    online = wait.count(ONLINE)
    assert limits.sequences >= min(sequences, len(running) + online)
