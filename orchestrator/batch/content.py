"""Contents of files, each under the SHA-256 of its bytes.

What is written comes in through a *spool*, a temporary file in the store's local folder, so that a
content is there whole or not at all. `LocalStore` links the spool into place; `RemoteStore` keeps
contents wherever fsspec reaches (s3://, gs://, ...) and brings them here to be read.
"""

import contextlib
import hashlib
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Protocol, Self

from orchestrator.errors import UserError

CHUNK_BYTES = 1 << 20
STALE_SPOOL_S = 24 * 3600.0
"""A spool that nobody wrote to for so long was left by a process that died."""


class Spool:
    """Bytes on their way into a store; leaving the `with` block removes what was not stored."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self._sha = hashlib.sha256()
        self._file: BinaryIO = path.open("xb")

    def write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._sha.update(data)
        self.bytes += len(data)

    def seal(self) -> str:
        """Everything is written and on the disk; returns the digest."""
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        return self._sha.hexdigest()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        # On a full disk closing fails too; the file goes anyway.
        with contextlib.suppress(OSError):
            self._file.close()
        self.path.unlink(missing_ok=True)


class ContentStore(Protocol):
    """Where contents are."""

    def spool(self) -> Spool: ...

    def put(self, spool: Spool, digest: str) -> None:
        """Keep what is in a sealed spool. Idempotent; the spool stays."""
        ...

    def has(self, digest: str) -> bool: ...

    def remove(self, digest: str) -> None:
        """Idempotent."""
        ...

    def local(self, digest: str) -> Path:
        """A file on this machine with the content. Raises `FileNotFoundError`."""
        ...

    def remove_stale(self, now_s: float | None = None) -> None:
        """Remove spools of processes that died."""
        ...


class LocalStore:
    """Contents in a folder of this machine, or one that all nodes share."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._incoming = folder / "incoming"
        self._incoming.mkdir(parents=True, exist_ok=True, mode=0o700)

    def spool(self) -> Spool:
        return Spool(self._incoming / secrets.token_hex(16))

    def put(self, spool: Spool, digest: str) -> None:
        path = self._path(digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(FileExistsError):
            os.link(spool.path, path)
        _sync_folder(path.parent)

    def has(self, digest: str) -> bool:
        return self._path(digest).exists()

    def remove(self, digest: str) -> None:
        self._path(digest).unlink(missing_ok=True)

    def local(self, digest: str) -> Path:
        path = self._path(digest)
        if not path.exists():
            raise FileNotFoundError(path)
        return path

    def remove_stale(self, now_s: float | None = None) -> None:
        now_s = time.time() if now_s is None else now_s
        for path in self._incoming.iterdir():
            with contextlib.suppress(FileNotFoundError):
                if now_s - path.stat().st_mtime > STALE_SPOOL_S:
                    path.unlink()

    def _path(self, digest: str) -> Path:
        return self._folder / digest[:2] / digest


class RemoteStore:
    """Contents below an fsspec URL, with copies of those that were read in a local folder."""

    def __init__(self, url: str, cache: Path) -> None:
        """Raises `UserError` where the package for this kind of URL is missing."""
        self._files, self._root = open_filesystem(url)
        self._cache = LocalStore(cache)

    def spool(self) -> Spool:
        return self._cache.spool()

    def put(self, spool: Spool, digest: str) -> None:
        if self.has(digest):
            return
        # Under another name first: an upload that breaks off must not look whole.
        coming = f"{self._root}/incoming/{secrets.token_hex(16)}"
        self._files.makedirs(f"{self._root}/incoming", exist_ok=True)
        self._files.makedirs(os.path.dirname(self._path(digest)), exist_ok=True)
        self._files.put_file(str(spool.path), coming)
        self._files.mv(coming, self._path(digest))

    def has(self, digest: str) -> bool:
        self._files.invalidate_cache()
        return bool(self._files.exists(self._path(digest)))

    def remove(self, digest: str) -> None:
        self._cache.remove(digest)
        with contextlib.suppress(FileNotFoundError):
            self._files.rm_file(self._path(digest))

    def local(self, digest: str) -> Path:
        if not self._cache.has(digest):
            with self._cache.spool() as spool, self._files.open(self._path(digest), "rb") as file:
                shutil.copyfileobj(file, spool, CHUNK_BYTES)
                if spool.seal() != digest:
                    raise FileNotFoundError(f"{self._path(digest)} is damaged")
                self._cache.put(spool, digest)
        return self._cache.local(digest)

    def remove_stale(self, now_s: float | None = None) -> None:
        self._cache.remove_stale(now_s)

    def _path(self, digest: str) -> str:
        return f"{self._root}/{digest[:2]}/{digest}"


def open_filesystem(url: str) -> tuple[Any, str]:
    """An fsspec file system and the path on it. Raises `UserError` for what fsspec cannot reach."""
    from fsspec.core import url_to_fs

    try:
        filesystem, path = url_to_fs(url)
    except (ImportError, ValueError) as error:
        raise UserError(
            f"{url.partition('://')[0]}:// cannot be read: {error}",
            "install the fsspec package for it, such as s3fs, gcsfs or huggingface_hub",
        ) from error
    return filesystem, str(path)


def read_chunks(path: Path) -> Iterator[bytes]:
    """The bytes of a file, a piece at a time."""
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            yield chunk


def _sync_folder(folder: Path) -> None:
    """Names in a folder survive a loss of power only once the folder was synced."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
