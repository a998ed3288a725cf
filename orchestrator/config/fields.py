"""Field types and the base class that all sections of the config share."""

import re
from pathlib import Path
from typing import Annotated

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationInfo,
)

from orchestrator.config.bytesize import parse_bytes

_DNS_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")

BASE_DIR = "base_dir"
"""Key of the validation context that holds the folder relative paths are resolved against."""


class Section(BaseModel):
    """A part of the config: frozen, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


def _resolve_path(path: Path, info: ValidationInfo) -> Path:
    base_dir = (info.context or {}).get(BASE_DIR, Path.cwd())
    return (base_dir / path.expanduser()).resolve()


def _check_dns_name(name: str) -> str:
    if not _DNS_LABEL.fullmatch(name):
        raise ValueError(
            f"{name!r} is not a name: use at most 63 lower case letters, digits and inner hyphens"
        )
    return name


ConfigPath = Annotated[Path, AfterValidator(_resolve_path)]
ByteSize = Annotated[int, BeforeValidator(parse_bytes), Field(ge=0)]
DnsName = Annotated[str, AfterValidator(_check_dns_name)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Seconds = PositiveFloat
Count = Annotated[int, Field(ge=1)]
