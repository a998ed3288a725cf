"""What a verb's request says, and how the control plane is asked for it: one table for HTTP and
the command line."""

from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field

Name = Annotated[str, Field(min_length=1, max_length=200)]


class Ask(BaseModel):
    """Body of a POST to `/api/v1/VERB`. dry_run: say what would be done, and do nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    dry_run: bool = False

    def words(self) -> tuple[str, int]:
        """Target and number of the verb."""
        return "", 0


class AskOne(Ask):
    """target: a component, `node/NAME`, or what else the verb takes."""

    target: Name

    def words(self) -> tuple[str, int]:
        return self.target, 0


class AskSize(Ask):
    """How many members the pool (`engine`: the engines) is to have."""

    pool: Name
    size: Annotated[int, Field(ge=0, le=1_000_000)]

    def words(self) -> tuple[str, int]:
        return self.pool, self.size


class AskExpert(Ask):
    """expert: `LAYER/EXPERT`."""

    expert: Name

    def words(self) -> tuple[str, int]:
        return self.expert, 0


class AskRule(AskExpert):
    """pools: of shards."""

    pools: Annotated[list[Name], Field(min_length=1)]

    def words(self) -> tuple[str, int]:
        return f"{self.expert} {','.join(self.pools)}", 0


UPGRADE = "upgrade"
"""The one verb that the control plane's core does not decide: the controller gives way."""

BODIES: dict[str, type[Ask]] = {
    "rebalance": Ask,
    "scale": AskSize,
    "drain": AskOne,
    "undrain": AskOne,
    "cordon": AskOne,
    "uncordon": AskOne,
    "restart": AskOne,
    "rolling-restart": AskOne,
    "stop-rolling-restart": Ask,
    UPGRADE: Ask,
    "pin": AskRule,
    "ban": AskRule,
    "unpin": AskExpert,
}
"""Verb -> its body."""
