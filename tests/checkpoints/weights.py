"""Random weights that give a model with clear opinions.

Greedy tokens of a purely random model are a poor yardstick: its best two logits are often a
hair apart, so rounding alone changes the text. Here the output head favours one successor per
token (a fixed cycle through printable ASCII) by adding that token's embedding to the successor's
row. The favourite then usually leads the other candidates by about one standard deviation of the
logits: rounding noise of a percent almost never changes the argmax, wrong or missing experts
soon do. Ids other than printable ASCII have logit 0, so text is readable and `<eos>` never ends a
request early.
"""

import torch
from torch import Tensor

from tests.checkpoints.tokenizer import VOCAB_SIZE

PRINTABLE = range(32, 127)
"""Ids (bytes) the models emit."""


class WeightSource:
    """A seeded stream of float32 weights; the same calls give the same tensors."""

    def __init__(self, seed: int) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def normal(self, *shape: int, std: float = 1.0) -> Tensor:
        return torch.randn(*shape, generator=self._generator) * std

    def linear(self, out_features: int, in_features: int, gain: float = 1.0) -> Tensor:
        """Matrix [out_features, in_features] that keeps unit variance times `gain`."""
        return self.normal(out_features, in_features, std=gain * in_features**-0.5)

    def norm(self, size: int) -> Tensor:
        """RMSNorm weight [size], near one."""
        return 1 + self.normal(size, std=0.1)

    def permutation(self, size: int) -> Tensor:
        return torch.randperm(size, generator=self._generator)

    def ends(self, hidden: int, *, lead: float) -> dict[str, Tensor]:
        """What a model has before and after its layers; lead: see `head`."""
        embedding = self.normal(VOCAB_SIZE, hidden)
        return {
            "model.embed_tokens.weight": embedding,
            "model.norm.weight": self.norm(hidden),
            "lm_head.weight": self.head(embedding, lead=lead),
        }

    def head(self, embedding: Tensor, *, lead: float, sharpness: float = 3.0) -> Tensor:
        """Output head [VOCAB_SIZE, hidden] for `embedding` [VOCAB_SIZE, hidden].

        `sharpness` is the standard deviation of the logits' random part, `lead` the weight of the
        embedding of the token whose favourite successor a row is, relative to that random part.
        """
        hidden = embedding.shape[1]
        cycle = torch.tensor(PRINTABLE)[self.permutation(len(PRINTABLE))]
        favourite = torch.nn.functional.normalize(embedding[cycle]) * (lead * hidden**0.5)
        head = torch.zeros(VOCAB_SIZE, hidden)
        head[cycle.roll(-1)] = self.normal(len(PRINTABLE), hidden) + favourite
        head *= sharpness * hidden**-0.5
        return head
