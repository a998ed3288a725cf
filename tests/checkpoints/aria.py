"""Aria: a small vision tower before a language model with routed experts; written by transformers.

Of the families that vLLM serves with images it is one whose pictures are prepared by PIL alone.
Pictures become 980 x 980 pixels, 14 x 14 patches, and `IMAGE_TOKENS` tokens.
"""

from pathlib import Path

import torch

from tests.checkpoints.tokenizer import BOS_ID, EOS_ID, VOCAB_SIZE, byte_tokenizer, tokenizer_config
from tests.checkpoints.transformers_models import EXPERTS, INTER, draw_weights
from tests.checkpoints.weights import WeightSource
from tests.checkpoints.writer import write_json

IMAGE_TOKEN, IMAGE_ID, IMAGE_TOKENS = "<img>", 258, 8
PIXELS, PATCH = 980, 70
HIDDEN = 128
CHAT_TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{{ part['text'] if part['type'] == 'text' else '<img>' }}{% endfor %}{% endfor %}"
)


def make_aria(directory: Path, *, seed: int) -> Path:
    """Write a bf16 Aria checkpoint: 2 layers, 16 experts, top-4, two shared ones."""
    from transformers import AriaConfig, AriaForConditionalGeneration

    config = AriaConfig(
        vision_config={
            "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
            "num_attention_heads": 2, "image_size": PIXELS, "patch_size": PATCH,
        },
        text_config={
            "model_type": "aria_text", "vocab_size": VOCAB_SIZE, "hidden_size": HIDDEN,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4,
            "intermediate_size": INTER, "moe_num_experts": EXPERTS, "moe_topk": 4,
            "max_position_embeddings": 2048, "bos_token_id": BOS_ID, "eos_token_id": EOS_ID,
            "pad_token_id": EOS_ID,
        },
        projector_patch_to_query_dict={(PIXELS // PATCH) ** 2: IMAGE_TOKENS},
        image_token_index=IMAGE_ID,
    )  # fmt: skip
    torch.manual_seed(seed)  # for what is not drawn below
    model = AriaForConditionalGeneration(config)
    draw_weights(model, WeightSource(seed))
    model.to(torch.bfloat16).save_pretrained(directory)
    _write_processor(directory)
    return directory


def _write_processor(directory: Path) -> None:
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens([IMAGE_TOKEN])
    tokenizer.save(str(directory / "tokenizer.json"))
    special = {"extra_special_tokens": {"image_token": IMAGE_TOKEN}, "chat_template": CHAT_TEMPLATE}
    write_json(directory / "tokenizer_config.json", tokenizer_config() | special)
    write_json(
        directory / "preprocessor_config.json",
        {"image_processor_type": "AriaImageProcessor", "max_image_size": PIXELS},
    )
    write_json(
        directory / "processor_config.json",
        {"processor_class": "AriaProcessor", "size_conversion": {str(PIXELS): IMAGE_TOKENS}},
    )
