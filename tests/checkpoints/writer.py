"""Writes a model directory in the layout vLLM and transformers read."""

import json
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from tests.checkpoints.tokenizer import BOS_ID, EOS_ID, byte_tokenizer, tokenizer_config

Config = dict[str, object]

_WEIGHTS = "model.safetensors"


def write_model(directory: Path, tensors: Mapping[str, Tensor], config: Config) -> Path:
    """Write weights, config and tokenizer into `directory` (made if missing) and return it."""
    directory.mkdir(parents=True, exist_ok=True)
    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(contiguous, directory / _WEIGHTS, metadata={"format": "pt"})
    write_json(
        directory / "model.safetensors.index.json",
        {
            "metadata": {"total_size": sum(t.nbytes for t in contiguous.values())},
            "weight_map": dict.fromkeys(contiguous, _WEIGHTS),
        },
    )
    special = {"bos_token_id": BOS_ID, "eos_token_id": EOS_ID}
    write_json(directory / "config.json", {"dtype": "bfloat16", **config, **special})
    write_json(directory / "generation_config.json", special)
    byte_tokenizer().save(str(directory / "tokenizer.json"))
    write_json(directory / "tokenizer_config.json", tokenizer_config())
    return directory


def write_json(path: Path, content: Mapping[str, object]) -> None:
    path.write_text(json.dumps(content, indent=1) + "\n")
