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


def test_a_step_that_begins_an_online_prompt_computes_it_whole_and_none_of_batch_requests():
    waiting = [Request(ONLINE, prompt=700), Request(BATCH)]
    running = decoding(BATCH, 40) + decoding(ONLINE, 3)
    assert beside_online(running, waiting) == StepLimits(60, 743, batch_prompts=False)
    begun = [Request(ONLINE, prompt=700, num_computed_tokens=100)]
    chunk = [Request(BATCH, prompt=900, num_computed_tokens=100)]
    assert beside_online(running + begun + chunk) == StepLimits(60, 643, batch_prompts=False)
    assert beside_online(waiting=[Request(ONLINE, prompt=9000)]).tokens == FULL.tokens


def test_the_next_step_computes_twice_as_many_of_batch_requests():
    first, waiting = OnlineFirst(FULL), [Request(ONLINE, prompt=10)]
    steps = [first.limits(decoding(BATCH, 28), waiting, n / 1000) for n in range(4)]
    assert [step.tokens for step in steps] == [38, 38 + 200] * 2
    assert [step.batch_prompts for step in steps] == [False, True] * 2
    assert first.limits(decoding(BATCH, 28), [], 0.1).tokens == 28 + 100


def test_nothing_is_held_back_for_online_requests_that_cannot_begin():
    full_of_batch = decoding(BATCH, 64)
    assert beside_online(full_of_batch, [Request(ONLINE)]).batch_prompts


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
