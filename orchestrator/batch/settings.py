"""What gateway and runner have to know about batch jobs."""

import hashlib
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from orchestrator.batch.content import ContentStore, LocalStore, RemoteStore
from orchestrator.config.batch import BatchConfig

DEFAULT_NAME = "default"
"""Owner of what is asked for without a named key."""


class BatchSettings(BaseModel):
    """Handed to the processes that need it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    config: BatchConfig
    folder: Path
    """Folder of ledger and files, where the config does not put them elsewhere."""
    model_name: str
    """The model that requests may name."""
    max_line_bytes: int
    """Of one request, as `gateway.max_request_body` says."""

    @property
    def database_url(self) -> str:
        return self.config.database or f"sqlite:///{self.folder / 'ledger.sqlite'}"

    def owner_of(self, key: bytes) -> str:
        """The name whose files and jobs an API key sees."""
        digest = hashlib.sha256(key).hexdigest()
        return next((n for n, known in self.config.names.items() if known == digest), DEFAULT_NAME)

    def open_store(self) -> ContentStore:
        """Raises `UserError`."""
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self.config.files is None:
            return LocalStore(self.folder / "files")
        return RemoteStore(self.config.files, self.folder / "cache")
