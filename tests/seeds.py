"""One printed seed from which everything that tests sample at random follows.

`--seed N` gives another one. The default is fixed, so that a run either passes or fails each time;
`make test-random` runs the property tests with new ones.
"""

import random
import sys
import zlib

import numpy
import pytest
from hypothesis import settings

FIXED_SEED = 0

# A busy machine is not an error: no deadline for single examples.
settings.register_profile("fixed", derandomize=True, deadline=None, print_blob=True)
settings.register_profile("random", database=None, deadline=None, print_blob=True)


def add_option(parser: pytest.Parser) -> None:
    parser.addoption(
        "--seed",
        type=int,
        default=FIXED_SEED,
        help="seed of everything sampled at random (default: %(default)s)",
    )


def seed_of(config: pytest.Config) -> int:
    """The seed of this run, not negative."""
    seed: int = config.getoption("--seed")
    return seed


def configure(config: pytest.Config) -> None:
    """Have property tests follow the seed. Comes before hypothesis's own plugin is configured."""
    if seed_of(config) == FIXED_SEED:
        settings.load_profile("fixed")
    else:
        settings.load_profile("random")
        config.option.hypothesis_seed = str(seed_of(config))


def seed_everything(config: pytest.Config, nodeid: str) -> None:
    """Seed the global generators for one test: the same whatever ran before it.

    torch only where it is loaded already: importing it takes seconds.
    """
    seed = (zlib.crc32(nodeid.encode()) ^ seed_of(config)) & 0xFFFFFFFF
    random.seed(seed)
    numpy.random.seed(seed)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(seed)
