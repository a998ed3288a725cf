"""A request that another engine began: the answer is the one that this engine gives undisturbed."""

import json
import re
from dataclasses import replace

import pytest

from actors.engine.config import EngineConfig
from actors.messages import Emitted, HttpRequest, Progress, ResponseStart
from orchestrator.engine_settings import EXECUTOR_FLAG, ONE_PROCESS_EXECUTOR
from tests.checkpoints.make import make_checkpoint
from tests.orchestrator.gateway.ray_fakes import private_ray, start_actor

pytestmark = [pytest.mark.vllm, pytest.mark.ray, pytest.mark.long]

FLAGS = {
    "max_model_len": 512,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 32,
    "enforce_eager": True,
    "dtype": "float32",
    "generation_config": "vllm",
    EXECUTOR_FLAG: ONE_PROCESS_EXECUTOR,
}
"""Prompts with output are computed in several parts. float32: prefill and decode round alike well
enough for texts to be compared."""

PROMPT = {"prompt": "The quick brown fox", "temperature": 0.0, "max_tokens": 40}
CHAT = {
    "messages": [{"role": "user", "content": "Tell me about foxes."}],
    "temperature": 0.0,
    "max_tokens": 40,
    "chat_template": "{% for m in messages %}{{ m.content }}{% endfor %}",
}
SCHEMA = {
    "type": "object",
    "properties": {"a": {"enum": [1, 22]}, "b": {"enum": ["red", "green"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}
CASES = {
    "greedy": ("/v1/completions", PROMPT),
    "usage": ("/v1/completions", PROMPT | {"echo": True}),
    "logprobs": ("/v1/completions", PROMPT | {"logprobs": 3}),
    "penalties": (
        "/v1/completions",
        PROMPT | {"presence_penalty": 0.7, "frequency_penalty": 0.4, "repetition_penalty": 1.2},
    ),
    "seed": ("/v1/completions", PROMPT | {"temperature": 1.0, "seed": 7, "top_p": 0.9}),
    "at least": ("/v1/completions", PROMPT | {"min_tokens": 30, "bad_words": ["fox", "the"]}),
    "chat": ("/v1/chat/completions", CHAT | {"logprobs": True, "top_logprobs": 2}),
    "structured": (
        "/v1/chat/completions",
        CHAT | {"structured_outputs": {"json": SCHEMA}},
    ),
    "tool": (
        "/v1/chat/completions",
        CHAT | {"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "look"}}},
    ),
}


def request(path: str, **fields: object) -> HttpRequest:
    headers = ((b"content-type", b"application/json"), (b"x-request-id", b"same"))
    body = json.dumps({"model": "tiny"} | fields).encode()
    return HttpRequest("POST", path, b"", headers, body, record=True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    import ray

    from actors.engine.engine import Engine

    model = make_checkpoint("qwen3_moe", tmp_path_factory.mktemp("model"))
    flags = FLAGS | {
        "trust_request_chat_template": True,
        "enable_auto_tool_choice": True,
        "tool_call_parser": "hermes",
    }
    config = EngineConfig(
        engine_id="e0", model=str(model), served_model_name="tiny", flags=flags,
        environment={"VLLM_CPU_OMP_THREADS_BIND": "nobind"},
    )  # fmt: skip
    with private_ray():
        engine = start_actor(Engine, "engine/e0", config)
        ray.get(engine.start.remote())
        yield engine
        ray.get(engine.stop.remote())


def ask(engine, request: HttpRequest) -> tuple[int, bytes, list[Emitted] | None]:
    """(status, body, record) of the answer."""
    import ray

    status, body, record = 0, b"", []
    for reference in engine.handle.options(num_returns="streaming").remote(request):
        reply = ray.get(reference)
        if isinstance(reply, ResponseStart | Progress):
            record = None if reply.emitted is None else [*record, *reply.emitted]
            status = reply.status if isinstance(reply, ResponseStart) else status
            reply = reply.body
        body += reply
    return status, body, record


def joined(body: bytes) -> dict:
    """A stream's events put together: how many tokens are in one event is a matter of time."""
    events = [line.removeprefix(b"data: ") for line in body.splitlines() if line]
    assert events.pop() == b"[DONE]"
    whole: dict = {}
    for event in events:
        put_together(whole, json.loads(event))
    return whole


def put_together(whole: dict, part: dict) -> None:
    """Texts and lists grow, except where a list has numbered entries, which do."""
    for key, value in part.items():
        old = whole.get(key)
        if key in {"id", "object", "created", "model", "role", "type", "index"} or old is None:
            whole[key] = value
        elif isinstance(value, dict):
            put_together(old, value)
        elif key in {"choices", "tool_calls"}:
            for entry in value:
                if entry["index"] < len(old):
                    put_together(old[entry["index"]], entry)
                else:
                    old.append(entry)
        elif isinstance(value, str | list):
            whole[key] = old + value
        elif value is not None:
            whole[key] = value


def comparable(body: bytes, stream: bool) -> str:
    """Without what differs from one answer to the next: times and random ids."""
    text = json.dumps(joined(body) if stream else json.loads(body))
    text = re.sub(r'"created": \d+', "", text)
    return re.sub(r'"id": "(chatcmpl-tool|call_)[^"]*"', "", text)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_every_answer_goes_on_where_it_was(engine, case, stream):
    path, fields = CASES[case]
    if stream:
        fields = fields | {"stream": True, "stream_options": {"include_usage": True}}
    asked = request(path, **fields)
    status, whole, record = ask(engine, asked)
    assert status == 200, whole
    # A busy machine hands over many tokens in one go: then there are fewer points to cut at.
    assert record
    for cut in {1, len(record) // 2, len(record) - 1, len(record)}:
        status, body, rest = ask(engine, replace(asked, emitted=tuple(record[:cut])))
        assert comparable(body, stream) == comparable(whole, stream)
        assert rest[0:] or cut == len(record)
