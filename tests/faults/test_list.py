"""The list of deliberate faults follows the code; `make faults` applies them."""

import ast
from pathlib import Path

import pytest

from scripts.faults import LIST, ROOT, Fault, broken, read_faults

FAULTS = read_faults(ROOT / LIST)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_fault_breaks_its_file_and_no_more(fault: Fault) -> None:
    sound = (ROOT / fault.file).read_text()
    text = broken(sound, fault)
    assert text != sound
    ast.parse(text)


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_its_tests_exist(fault: Fault) -> None:
    for test in fault.tests:
        file, _, name = test.partition("::")
        assert f"def {name}(" in (ROOT / file).read_text() or not name
        assert Path(ROOT, file).is_file()


def test_a_fault_whose_text_is_gone_is_an_error() -> None:
    fault = Fault("gone", "x.py", "no such text", "", ())
    with pytest.raises(ValueError, match=r"gone: x\.py has its text 0 times, not once"):
        broken("some text", fault)
