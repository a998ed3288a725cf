"""Talk to a mesh with the `openai` package: a completion, a streamed one, and logprobs.

    python examples/openai_client.py [--url http://127.0.0.1:8000] [PROMPT ...]

Nothing here knows of ExpertMesh: the endpoint is OpenAI's.
"""

import argparse
import os

from openai import OpenAI


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", default=os.environ.get("EXPERTMESH_URL", "http://127.0.0.1:8000"))
    parser.add_argument("--max-tokens", type=int, default=48)
    parser.add_argument("prompts", nargs="*", default=["Once upon a time", "def add(a, b):"])
    arguments = parser.parse_args()
    # Any key will do unless the mesh was started with EXPERTMESH_API_KEYS.
    key = os.environ.get("EXPERTMESH_API_KEYS", "none").split(",")[0]
    client = OpenAI(base_url=f"{arguments.url.rstrip('/')}/v1", api_key=key)
    model = client.models.list().data[0].id
    for prompt in arguments.prompts:
        stream(client, model, prompt, arguments.max_tokens)
    confidence(client, model, arguments.prompts[0])


def stream(client: OpenAI, model: str, prompt: str, max_tokens: int) -> None:
    """Print a greedy continuation as it arrives."""
    print(f"{prompt}", end="", flush=True)
    events = client.completions.create(
        model=model, prompt=prompt, max_tokens=max_tokens, temperature=0, stream=True
    )
    for event in events:
        if event.choices:
            print(event.choices[0].text, end="", flush=True)
    print("\n")


def confidence(client: OpenAI, model: str, prompt: str) -> None:
    """Print the next token with the log-probabilities of its rivals."""
    answer = client.completions.create(
        model=model, prompt=prompt, max_tokens=1, temperature=0, logprobs=3
    )
    logprobs = answer.choices[0].logprobs
    assert logprobs is not None
    assert logprobs.top_logprobs is not None
    rivals = sorted(logprobs.top_logprobs[0].items(), key=lambda rival: -rival[1])
    shown = ", ".join(f"{token!r} {logprob:.2f}" for token, logprob in rivals)
    print(f"after {prompt!r}: {shown}")


if __name__ == "__main__":
    main()
