"""Choose the demo prompts from the held-out documents.

    python make_prompts.py WORK_DIR PROMPTS_JSONL

Writes ``PROMPT_COUNTS`` prompts per domain, interleaved, one ``{"domain", "prompt"}`` object per
line. A prompt is the beginning of a held-out document, cut where a continuation is natural: after
a word (English), a whole line (Python), a whole clause (Chinese), at ``MIN_TOKENS`` to
``MAX_TOKENS`` tokens with the leading ``BOS``.
"""

import argparse
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path

from transformers import PreTrainedTokenizerFast

PROMPT_COUNTS = {"en": 22, "py": 21, "zh": 21}
MIN_TOKENS = 8
MAX_TOKENS = 40
ENGLISH_WORDS = (7, 10, 14, 18)
"""English prompts take these lengths in turn."""


def beginnings(domain: str, text: str, turn: int) -> Iterator[str]:
    """Candidate prompts of a document, the preferred one first."""
    if domain == "en":
        words = text.split(" ")
        yield " ".join(words[: ENGLISH_WORDS[turn % len(ENGLISH_WORDS)]])
        return
    if domain == "zh":
        clause = re.match(r"(《[^》]+》\n(?:作者：[^\n]+\n)?[^，。！？\n]+[，。！？])\S", text)
        if clause:
            yield clause[1]
        return
    lines = text.rstrip("\n").split("\n")
    for count in (2 + turn % 2, *range(1, 5)):
        if count < len(lines):
            yield "\n".join(lines[:count]).rstrip()


def is_usable(domain: str, prompt: str, n_tokens: int) -> bool:
    if not MIN_TOKENS <= n_tokens <= MAX_TOKENS or "\n\n" in prompt:
        return False
    if domain == "py":
        return prompt.startswith(("def ", "class ", "import ", "from ", "async def "))
    if domain == "zh":
        return prompt.startswith("《") and not re.search(r"[A-Za-z]", prompt)
    return True


def choose_prompts(
    documents: dict[str, list[str]], tokenizer: PreTrainedTokenizerFast
) -> dict[str, list[str]]:
    """``PROMPT_COUNTS`` prompts per domain, spread evenly over its usable documents."""
    chosen = {}
    for domain, wanted in PROMPT_COUNTS.items():
        usable: list[str] = []
        for turn, text in enumerate(documents[domain]):
            for prompt in beginnings(domain, text, turn):
                if is_usable(domain, prompt, len(tokenizer(prompt).input_ids)):
                    usable.append(prompt)
                    break
        usable = list(dict.fromkeys(usable))
        if len(usable) < wanted:
            raise ValueError(
                f"only {len(usable)} usable {domain} documents, {wanted} prompts asked"
            )
        chosen[domain] = [usable[i * len(usable) // wanted] for i in range(wanted)]
    return chosen


def main() -> None:
    parser = argparse.ArgumentParser(description="Choose the demo prompts from held-out documents.")
    parser.add_argument("work_dir", type=Path)
    parser.add_argument("prompts", type=Path)
    arguments = parser.parse_args()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(arguments.work_dir / "tokenizer")
    documents: dict[str, list[str]] = {domain: [] for domain in PROMPT_COUNTS}
    for line in (arguments.work_dir / "held_out.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        documents[row["domain"]].append(row["text"])
    chosen = choose_prompts(documents, tokenizer)
    with arguments.prompts.open("w", encoding="utf-8") as out:
        for prompts in itertools.zip_longest(*chosen.values()):
            for domain, prompt in zip(chosen, prompts, strict=True):
                if prompt is not None:
                    row = {"domain": domain, "prompt": prompt}
                    out.write(json.dumps(row, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
