"""Models whose scale is looked at on paper: shapes of their routed experts, nothing else."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class PaperModel:
    """layers, experts: MoE layers and routed experts of each. expert_bytes: of one expert, by the
    format its weights are kept in, scales included."""

    name: str
    layers: int
    experts: int
    top_k: int
    hidden: int
    intermediate: int
    expert_bytes: dict[str, int]

    @property
    def row_operations(self) -> int:
        """Of one row through one expert: gate, up and down."""
        return 2 * 3 * self.hidden * self.intermediate

    @property
    def rows_of_token(self) -> int:
        return self.top_k

    def total_bytes(self, weights: str) -> int:
        return self.layers * self.experts * self.expert_bytes[weights]


V4_FLASH = PaperModel(
    "V4-Flash", 43, 256, 6, 4096, 2048, {"fp4": 13_400_000, "int8": 3 * 4096 * 2048 + 40_000}
)
V4_PRO = PaperModel(
    "V4-Pro", 61, 384, 6, 7168, 3072, {"fp4": 35_000_000, "int8": 3 * 7168 * 3072 + 70_000}
)
MODELS = {"v4-flash": V4_FLASH, "v4-pro": V4_PRO}
