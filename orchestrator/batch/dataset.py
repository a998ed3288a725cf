"""Batch inference as a map over a Ray Dataset: rows in, rows with an answer out.

    answered = map_dataset(dataset, "http://127.0.0.1:8000", prompt_column="text", max_tokens=64)

Ray Data keeps the rows and starts again what it lost; requests go to the gateway as online requests
do, so this is for data that is in Ray already and needs no ledger. Jobs (`expertmesh batch`) come
after online requests and survive everything; this does neither.
"""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ray.data import Dataset

ANSWER, ERROR = "answer", "error"
"""Columns that are added; of the two one is None."""

MAX_TRIES = 6
FIRST_PAUSE_S = 0.5
TIMEOUT_S = 600.0


def map_dataset(
    dataset: "Dataset",
    url: str,
    *,
    prompt_column: str,
    model: str | None = None,
    api_key: str = "none",
    concurrency: int = 2,
    requests_at_once: int = 16,
    batch_size: int = 64,
    **body: Any,
) -> "Dataset":
    """`dataset` with the columns `answer` and `error`, by chat completions.

    model: unset, what the mesh at `url` serves. concurrency: processes that ask it, each with
    `requests_at_once` requests. body: more fields of each request.
    """
    return dataset.map_batches(
        _Asker,
        fn_constructor_args=(url, model, api_key, prompt_column, requests_at_once, body),
        batch_size=batch_size,
        batch_format="pyarrow",
        concurrency=concurrency,
        num_cpus=0.1,
    )


class _Asker:
    """Asks for a batch of rows at a time."""

    def __init__(
        self,
        url: str,
        model: str | None,
        api_key: str,
        prompt_column: str,
        requests_at_once: int,
        body: Mapping[str, Any],
    ) -> None:
        self._url = url.rstrip("/")
        self._model = model
        self._headers = {"Authorization": f"Bearer {api_key}"}
        self._column = prompt_column
        self._at_once = requests_at_once
        self._body = dict(body)

    def __call__(self, table: Any) -> Any:
        import pyarrow

        prompts = [str(value) for value in table.column(self._column).to_pylist()]
        answers = asyncio.run(self._ask_all(prompts))
        for number, name in enumerate((ANSWER, ERROR)):
            column = pyarrow.array([answer[number] for answer in answers], pyarrow.string())
            table = table.append_column(name, column)
        return table

    async def _ask_all(self, prompts: Sequence[str]) -> list[tuple[str | None, str | None]]:
        import httpx

        async with httpx.AsyncClient(
            base_url=self._url, headers=self._headers, timeout=TIMEOUT_S, trust_env=False
        ) as client:
            if self._model is None:
                models = await client.get("/v1/models")
                models.raise_for_status()
                self._model = str(models.json()["data"][0]["id"])
            free = asyncio.Semaphore(self._at_once)
            return await asyncio.gather(*(self._ask(client, free, p) for p in prompts))

    async def _ask(
        self, client: Any, free: asyncio.Semaphore, prompt: str
    ) -> tuple[str | None, str | None]:
        """(answer, None) or (None, what went wrong)."""
        import httpx

        messages = [{"role": "user", "content": prompt}]
        body = {"model": self._model, "messages": messages, **self._body}
        said = ""
        async with free:
            for attempt in range(MAX_TRIES):
                try:
                    response = await client.post("/v1/chat/completions", json=body)
                except httpx.TransportError as error:
                    said = f"{type(error).__name__}: {error}"
                else:
                    if response.is_success:
                        return str(response.json()["choices"][0]["message"]["content"]), None
                    said = f"status {response.status_code}: {response.text[:500]}"
                    if response.status_code < 500 and response.status_code not in {408, 429}:
                        break
                await asyncio.sleep(FIRST_PAUSE_S * 2**attempt)
        return None, said
