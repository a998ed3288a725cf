"""Secrets, which come from the environment only, never from a config file."""

from typing import Annotated

from pydantic import SecretStr, ValidationInfo, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from orchestrator.errors import UserError


class Secrets(BaseSettings):
    """Environment variables with the prefix `EXPERTMESH_`."""

    model_config = SettingsConfigDict(env_prefix="EXPERTMESH_", frozen=True, extra="ignore")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """`EXPERTMESH_API_KEYS`: keys a client may send, separated by commas; unset: no key needed."""

    admin_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """`EXPERTMESH_ADMIN_KEYS`: keys that may change the mesh, separated by commas; unset: changes
    are taken on a loopback address only."""

    @field_validator("api_keys", "admin_keys", mode="before")
    @classmethod
    def _split(cls, value: object, info: ValidationInfo) -> object:
        if not isinstance(value, str) or not value:
            return value or ()
        keys = tuple(key.strip() for key in value.split(",") if key.strip())
        if not keys:
            # Whoever sets the variable means to close the endpoint.
            raise UserError(
                f"EXPERTMESH_{str(info.field_name).upper()} is set but names no key",
                "give keys separated by commas, or unset it to serve without keys",
            )
        return keys
