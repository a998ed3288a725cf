"""A PostgreSQL server of a test's own: its own data folder, a Unix socket, no TCP port.

The programs come from Debian's package `postgresql`, which `.ci/run` installs. PostgreSQL refuses
to run as root, so then it runs as `nobody`.
"""

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.processes import wait_until

FOLDERS = ("/usr/lib/postgresql", "/usr/local/pgsql", "/usr/pgsql")


def programs() -> Path | None:
    """The folder with initdb and postgres of the newest version that is installed."""
    found = [p.parent for f in FOLDERS for p in Path(f).glob("*/bin/initdb")]
    if found:
        return max(found, key=lambda p: float(p.parent.name))
    on_path = shutil.which("initdb")
    return Path(on_path).resolve().parent if on_path else None


@contextmanager
def postgres() -> Iterator["Server"]:
    binaries = programs()
    assert binaries is not None, "install PostgreSQL: apt-get install postgresql"
    # Short: a Unix socket's path has 107 characters at most.
    folder = Path(tempfile.mkdtemp(prefix="pg"))
    user = "nobody" if os.geteuid() == 0 else None
    if user:
        entry = pwd.getpwnam(user)
        os.chown(folder, entry.pw_uid, entry.pw_gid)
        # The tests' own temporary folder lets nobody through.
        os.chmod(folder.parent, folder.parent.stat().st_mode | 0o011)
    server = Server(binaries, folder, user)
    try:
        server.initialize()
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder, ignore_errors=True)


class Server:
    def __init__(self, binaries: Path, folder: Path, user: str | None) -> None:
        self._binaries = binaries
        self._folder = folder
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"postgresql://test@/postgres?host={self._folder}"

    def initialize(self) -> None:
        data = str(self._folder / "data")
        self._run(
            "initdb", "-D", data, "-U", "test", "--auth=trust", "--no-sync"
        ).check_returncode()

    def start(self) -> None:
        command = [
            str(self._binaries / "postgres"),
            *("-D", str(self._folder / "data")),
            *("-k", str(self._folder)),
            *("-c", "listen_addresses=", "-c", "fsync=off", "-c", "shared_buffers=16MB"),
        ]
        quiet = subprocess.DEVNULL
        self._process = subprocess.Popen(
            command,
            user=self._user,
            group="nogroup" if self._user else None,
            extra_groups=[] if self._user else None,
            stdout=quiet,
            stderr=quiet,
            cwd="/",
        )
        ask = ("-h", str(self._folder), "-q")
        wait_until(lambda: self._run("pg_isready", *ask).returncode == 0)

    def kill(self) -> None:
        """End it at once, as a crash would: clients lose their connections."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(3)  # SIGQUIT: PostgreSQL's immediate shutdown
            self._process.wait(30)

    def _run(self, program: str, *arguments: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [str(self._binaries / program), *arguments],
            user=self._user,
            group="nogroup" if self._user else None,
            extra_groups=[] if self._user else None,
            cwd="/",
            stdout=subprocess.DEVNULL,
            check=False,
        )
