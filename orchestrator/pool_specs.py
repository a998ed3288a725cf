"""What each pool's shards load: the model's own checkpoint, or one that stands in for it."""

from actors.experts.check import check_checkpoint
from actors.experts.families import read_expert_spec
from actors.experts.spec import ExpertSpec
from actors.experts.variant import check_shapes
from orchestrator.config.pools import PoolConfig
from orchestrator.errors import UserError


def specs_of_pools(pools: dict[str, PoolConfig], base: ExpertSpec) -> dict[str, ExpertSpec]:
    """From headers alone; whether results are alike is for shards to find out.

    Raises:
        UserError: a pool's checkpoint is not whole, or of another model.
    """
    specs = {}
    for name, pool in pools.items():
        specs[name] = base
        if pool.checkpoint is None:
            continue
        try:
            specs[name] = read_expert_spec(pool.checkpoint, predictors=base.predictors > 0)
            check_shapes(specs[name], base)
            check_checkpoint(specs[name])
        except (OSError, ValueError) as error:
            raise UserError(f"pools.{name}.checkpoint: {error}") from error
    return specs
