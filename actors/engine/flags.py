"""vLLM flags, given as a mapping, become the namespace that vLLM's own server takes.

vLLM's parser decides what is valid; this module only spells the mapping as a command line and turns
the parser's complaints into one line. Flags that belong to an HTTP server are refused: an engine
opens no port.
"""

import difflib
import json
from argparse import ArgumentError, BooleanOptionalAction, Namespace
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from vllm.utils.argparse_utils import FlexibleArgumentParser

OWNED_FLAGS = {
    "model": "set `model` of the engine",
    "model_tag": "set `model` of the engine",
    "served_model_name": "set `served_model_name` of the engine",
    "host": "the gateway has the address",
    "port": "the gateway has the address",
    "uds": "the gateway has the address",
    "grpc": "the gateway speaks HTTP only",
    "grpc_port": "the gateway speaks HTTP only",
    "api_key": "the gateway checks keys (EXPERTMESH_API_KEYS)",
    "root_path": "the gateway owns the paths",
    "middleware": "requests reach the engine through the gateway only",
    "ssl_keyfile": "end TLS in front of the gateway",
    "ssl_certfile": "end TLS in front of the gateway",
    "ssl_ca_certs": "end TLS in front of the gateway",
    "headless": "an engine is one process group; add engines instead",
    "api_server_count": "an engine has one front end; add engines instead",
    "data_parallel_size": "engines are independent; add engines instead",
    "scheduler_cls": "the engine's scheduler ends the requests of steps that lacked experts",
    "config": "name the flags one by one",
    "help": "run `vllm serve --help=all` to read about flags",
}
"""vLLM flags that an engine of a mesh may not be given, and what to do instead."""


class InvalidFlagError(ValueError):
    """A flag that vLLM does not have, or a value that it does not take."""


def make_parser() -> "FlexibleArgumentParser":
    """vLLM's parser of `vllm serve`, raising `InvalidFlagError` where it would exit."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    class RaisingParser(FlexibleArgumentParser):
        def error(self, message: str) -> NoReturn:
            raise InvalidFlagError(f"vLLM refuses its flags: {message}")

    parser: FlexibleArgumentParser = make_arg_parser(RaisingParser(prog="vllm serve"))  # type: ignore[no-untyped-call]
    return parser


def parse_flags(model: str, served_model_name: str, flags: Mapping[str, Any]) -> Namespace:
    """Namespace for vLLM's `build_app` and engine arguments.

    Raises `InvalidFlagError`, one line that names the flag, for anything vLLM would refuse.
    """
    from vllm.entrypoints.launchers.cli_args import validate_parsed_serve_args

    parser = make_parser()
    argv = ["--model", model, "--served-model-name", served_model_name]
    for name, value in flags.items():
        argv += spell_flag(parser, name, value)
    try:
        args: Namespace = parser.parse_args(argv)
        validate_parsed_serve_args(args)
    except (ArgumentError, TypeError, ValueError) as error:
        if isinstance(error, InvalidFlagError):
            raise
        raise InvalidFlagError(f"vLLM refuses its flags: {error}") from error
    return args


def spell_flag(parser: "FlexibleArgumentParser", name: str, value: Any) -> list[str]:
    """The flag as command-line words; `None` means vLLM's default and gives no words."""
    key = name.replace("-", "_")
    if key in OWNED_FLAGS:
        raise InvalidFlagError(f"vLLM flag `{name}` is not for an engine: {OWNED_FLAGS[key]}")
    options = {option: action for action in parser._actions for option in action.option_strings}
    option = "--" + key.replace("_", "-")
    if option not in options:
        known = sorted({o[2:].replace("-", "_") for o in options if o.startswith("--")})
        near = difflib.get_close_matches(key, known, n=1, cutoff=0.0)
        raise InvalidFlagError(f"vLLM has no flag `{name}`; did you mean `{near[0]}`?")
    action = options[option]
    if value is None:
        return []
    if isinstance(value, bool):
        return _spell_switch(name, option, value, isinstance(action, BooleanOptionalAction), action)
    if action.nargs == 0:
        raise InvalidFlagError(f"vLLM flag `{name}` takes true or false, not {value!r}")
    if isinstance(value, dict):
        return [option, json.dumps(value)]
    if isinstance(value, list | tuple):
        if action.nargs in {"+", "*"}:
            return [option, *map(str, value)]
        return [option, json.dumps(value)]
    # With "=", a value that starts with a dash is not taken for the next flag.
    return [f"{option}={value}"]


def _spell_switch(
    name: str, option: str, value: bool, has_opposite: bool, action: Any
) -> list[str]:
    if action.nargs != 0:
        raise InvalidFlagError(f"vLLM flag `{name}` takes a value, not {str(value).lower()}")
    if value:
        return [option]
    return ["--no-" + option[2:]] if has_opposite else []
