"""Submit a batch job with OpenAI's own client, wait for it and print its answers."""

import json
import os
import time

from openai import OpenAI

PROMPTS = ("In the beginning", "And it came to pass", "Now these are the names")
ENDPOINT = "/v1/completions"
FINISHED = ("completed", "failed", "expired", "cancelled")


def request(number: int, prompt: str, model: str) -> str:
    """A line of the input file."""
    body = {"model": model, "prompt": prompt, "max_tokens": 16, "temperature": 0}
    line = {"custom_id": f"prompt-{number}", "method": "POST", "url": ENDPOINT, "body": body}
    return json.dumps(line)


def main() -> None:
    url = os.environ.get("EXPERTMESH_URL", "http://127.0.0.1:8000")
    client = OpenAI(base_url=f"{url}/v1", api_key=os.environ.get("OPENAI_API_KEY", "none"))
    model = client.models.list().data[0].id
    lines = [request(number, prompt, model) for number, prompt in enumerate(PROMPTS)]
    file = client.files.create(file=("prompts.jsonl", "\n".join(lines).encode()), purpose="batch")
    job = client.batches.create(input_file_id=file.id, endpoint=ENDPOINT, completion_window="24h")
    while job.status not in FINISHED:
        time.sleep(0.5)
        job = client.batches.retrieve(job.id)
    print(job.status, job.request_counts)
    if job.output_file_id is not None:
        for line in client.files.content(job.output_file_id).text.splitlines():
            answer = json.loads(line)
            print(answer["custom_id"], answer["response"]["body"]["choices"][0]["text"])


if __name__ == "__main__":
    main()
