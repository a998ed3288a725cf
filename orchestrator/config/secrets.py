"""Secrets, which come from the environment only, never from a config file."""

from typing import Annotated

from pydantic import SecretStr, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict


class Secrets(BaseSettings):
    """Environment variables with the prefix `EXPERTMESH_`."""

    model_config = SettingsConfigDict(env_prefix="EXPERTMESH_", frozen=True, extra="ignore")

    api_keys: Annotated[tuple[SecretStr, ...], NoDecode] = ()
    """`EXPERTMESH_API_KEYS`: keys a client may send, separated by commas; empty: no key needed."""

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split(cls, value: object) -> object:
        if isinstance(value, str):
            return tuple(key.strip() for key in value.split(",") if key.strip())
        return value
