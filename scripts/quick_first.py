"""pytest plugin of `scripts/mutants.py`: files whose tests are quick come first.

A mutant is done with at the first test that fails, and mutmut names the tests to run in no
particular order. How long each takes is in the statistics that mutmut keeps where it runs them.
"""

import json
from collections import defaultdict
from pathlib import Path
from statistics import mean

import pytest

STATISTICS = Path("mutmut-stats.json")


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not STATISTICS.exists():
        return
    durations = json.loads(STATISTICS.read_text())["duration_by_test"]
    by_file = defaultdict(list)
    for item in items:
        by_file[item.path].append(durations.get(item.nodeid, 0.0))
    items.sort(key=lambda item: mean(by_file[item.path]))
