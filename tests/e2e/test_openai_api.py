"""The OpenAI client, unmodified, against a whole mesh."""

import pytest
from openai import BadRequestError, NotFoundError, OpenAI

from tests.e2e.mesh_process import MeshProcess

pytestmark = [pytest.mark.e2e, pytest.mark.ray, pytest.mark.vllm]

PROMPT = "one two three"


@pytest.fixture(scope="module")
def client(mesh: MeshProcess) -> OpenAI:
    return OpenAI(base_url=f"{mesh.url}/v1", api_key="unused", max_retries=0, timeout=60)


def complete(client: OpenAI, **options):
    settings = {"model": "tiny", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, **options}
    return client.completions.create(**settings)


def test_models(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]


def test_completion_is_deterministic_when_greedy(client: OpenAI) -> None:
    first, second = complete(client), complete(client)
    assert first.choices[0].text == second.choices[0].text
    assert first.choices[0].finish_reason == "length"
    assert first.usage.completion_tokens == 12


def test_stream_gives_the_same_text(client: OpenAI) -> None:
    events = list(complete(client, stream=True))
    assert len(events) > 1
    text = "".join(event.choices[0].text for event in events if event.choices)
    assert text == complete(client).choices[0].text


def test_chat_and_its_stream(client: OpenAI) -> None:
    settings = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "hello"}],
        "max_tokens": 12,
        "temperature": 0,
    }
    whole = client.chat.completions.create(**settings).choices[0].message
    assert whole.role == "assistant"
    parts = client.chat.completions.create(**settings, stream=True)
    assert "".join(p.choices[0].delta.content or "" for p in parts) == whole.content


def test_logprobs_belong_to_the_chosen_tokens(client: OpenAI) -> None:
    logprobs = complete(client, logprobs=3).choices[0].logprobs
    assert len(logprobs.token_logprobs) == 12
    for chosen, top in zip(logprobs.token_logprobs, logprobs.top_logprobs, strict=True):
        assert chosen <= 0
        assert chosen == pytest.approx(max(top.values()))


def test_stop_ends_the_text(client: OpenAI) -> None:
    text = complete(client).choices[0].text
    stop = text[len(text) // 2 :][:2]
    answer = complete(client, stop=stop).choices[0]
    assert answer.finish_reason == "stop"
    assert answer.text == text[: text.index(stop)]


def test_n_gives_so_many_choices(client: OpenAI) -> None:
    choices = complete(client, n=3, temperature=1.0, seed=1).choices
    assert [choice.index for choice in choices] == [0, 1, 2]
    assert len({choice.text for choice in choices}) > 1


def test_seed_repeats_a_sample(client: OpenAI) -> None:
    def sample(seed: int) -> str:
        return complete(client, temperature=1.0, seed=seed).choices[0].text

    assert sample(7) == sample(7)
    assert sample(7) != sample(8)


def test_requests_side_by_side_do_not_mix(mesh: MeshProcess) -> None:
    from concurrent.futures import ThreadPoolExecutor

    # Their last tokens decide most of what a small random model says.
    prompts = [f"say it {word}" for word in ("A", "bb", "3", "?", "x y", "--", "Q.", "end")]
    alone = [mesh.complete(prompt) for prompt in prompts]
    with ThreadPoolExecutor(8) as threads:
        together = list(threads.map(mesh.complete, prompts))
    assert len(set(alone)) == len(prompts), "an answer tells whose it is"
    for own, answer in zip(alone, together, strict=True):
        assert answer == own or answer not in alone
    # Kernels are not bit-equal across batch sizes, and this model is random: ties may fall apart.
    assert sum(a == t for a, t in zip(alone, together, strict=True)) >= 6


def test_malformed_requests_get_openai_errors(client: OpenAI, mesh: MeshProcess) -> None:
    with pytest.raises(BadRequestError) as bad:
        complete(client, max_tokens=-1)
    assert bad.value.type == "BadRequestError"
    with pytest.raises(NotFoundError):
        client.completions.create(model="other", prompt="x")
    for body in ({"model": "tiny"}, {"model": "tiny", "prompt": 3}, "not an object"):
        answer = mesh.post("/v1/completions", body)
        assert 400 <= answer.status_code < 500
        assert set(answer.json()["error"]) >= {"message", "type", "param", "code"}
    assert mesh.post("/v1/nothing", {}).status_code == 404


def test_health_and_metrics(mesh: MeshProcess) -> None:
    health = mesh.get("/health")
    assert (health.status_code, health.json()["reason"]) == (200, "1 of 1 engines ready")
    page = mesh.get("/metrics").text
    assert 'expertmesh_gateway_requests_total{code="200",model_name="tiny"' in page
    assert 'engine_id="engine-0"' in page
