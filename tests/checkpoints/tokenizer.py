"""Byte-level tokenizer without merges: the id of a byte is its value."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

EOS_ID = 256
BOS_ID = 257
VOCAB_SIZE = 320
"""256 bytes, two special tokens, padded to a multiple of 64."""

SPECIAL_TOKENS = {"<eos>": EOS_ID, "<bos>": BOS_ID}

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)


def byte_tokenizer() -> Tokenizer:
    """The tokenizer behind `tokenizer.json`."""
    vocab = {character: byte for byte, character in enumerate(_byte_characters())} | SPECIAL_TOKENS
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL_TOKENS))
    return tokenizer


def tokenizer_config() -> dict[str, object]:
    """Contents of `tokenizer_config.json`."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<eos>",
        "bos_token": "<bos>",
        "pad_token": "<eos>",
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }


def _byte_characters() -> list[str]:
    """The character that byte-level BPE writes for each byte: itself if visible, else 256 + n."""
    visible = {*range(33, 127), *range(161, 173), *range(174, 256)}
    hidden = [byte for byte in range(256) if byte not in visible]
    return [chr(byte if byte in visible else 256 + hidden.index(byte)) for byte in range(256)]
