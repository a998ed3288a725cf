"""Folders of Unix sockets: only this user may look into them, which is what guards the sockets."""

import os
import stat
from pathlib import Path


def require_private(folder: Path) -> None:
    """Check that nobody but this user (and root) can reach sockets in `folder`.

    Raises:
        PermissionError: somebody else owns it, or its mode lets others in.
        OSError: it is not there.
    """
    found = folder.stat()
    if found.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{folder} belongs to user {found.st_uid}, not to this one ({os.geteuid()}): sockets "
            "are only used in folders of one's own"
        )
    if stat.S_IMODE(found.st_mode) & 0o077:
        raise PermissionError(
            f"{folder} has mode {stat.S_IMODE(found.st_mode):04o} and lets other users in: "
            f"chmod 700 {folder}"
        )
