"""vLLM's own flags, spelled as a mapping; vLLM is imported but loads nothing."""

import pytest

from actors.engine.flags import InvalidFlagError, parse_flags

pytestmark = pytest.mark.vllm


def parse(**flags):
    return parse_flags("/model", "name", flags)


def test_flags_keep_their_names_and_types():
    args = parse(
        max_model_len=512,
        max_num_seqs=16,
        enforce_eager=True,
        enable_prefix_caching=False,
        hf_overrides={"num_hidden_layers": 2},
        logits_processors=["a.B", "c.D"],
        disable_log_stats=True,
        seed=-3,
        dtype=None,
    )
    assert (args.model, args.served_model_name) == ("/model", ["name"])
    assert (args.max_model_len, args.max_num_seqs, args.seed) == (512, 16, -3)
    assert (args.enforce_eager, args.enable_prefix_caching) == (True, False)
    assert args.hf_overrides == {"num_hidden_layers": 2}
    assert args.logits_processors == ["a.B", "c.D"]
    assert args.disable_log_stats is True
    assert args.dtype == "auto"


def test_dashes_are_as_good_as_underscores():
    assert parse_flags("/model", "name", {"max-model-len": 64}).max_model_len == 64


def test_a_mistyped_flag_is_named_with_the_nearest_one():
    with pytest.raises(InvalidFlagError, match=r"no flag `max_model_length`.*`max_model_len`"):
        parse(max_model_length=512)


def test_an_abbreviated_flag_is_not_guessed():
    with pytest.raises(InvalidFlagError, match=r"no flag `enforce`.*`enforce_eager`"):
        parse(enforce=True)


def test_a_bad_value_is_named_with_its_flag():
    with pytest.raises(InvalidFlagError, match=r"max-model-len.*many"):
        parse(max_model_len="many")
    with pytest.raises(InvalidFlagError, match="`enforce_eager` takes true or false"):
        parse(enforce_eager=3)
    with pytest.raises(InvalidFlagError, match="`max_model_len` takes a value"):
        parse(max_model_len=True)
    with pytest.raises(InvalidFlagError, match="tool-call-parser"):
        parse(enable_auto_tool_choice=True)


@pytest.mark.parametrize("flag", ["host", "port", "api_key", "model", "data-parallel-size"])
def test_flags_that_an_engine_has_no_use_for_are_refused(flag):
    with pytest.raises(InvalidFlagError, match=f"`{flag}` is not for an engine"):
        parse_flags("/model", "name", {flag: "x"})
