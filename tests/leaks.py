"""What a run of the tests leaves behind: files in the temporary folder, shared memory, processes.

The machine is shared with other work, so only what is certainly this run's is counted:
  files      the run has a temporary folder of its own (TMPDIR), which has to be empty at the end
  processes  those that inherited this run's mark in their environment, whoever their parent is now
  /dev/shm   what is new there, and what no living process has mapped or open
A file is put down to the test after which it was first seen, a process to the test that pytest
names in the environment it inherited.
"""

import contextlib
import os
import shutil
import tempfile
import time
import uuid
from pathlib import Path

import psutil

MARK = "TEST_RUN_ID"
SHARED_MEMORY = Path("/dev/shm")
END_TIMEOUT_S = 10.0
"""How long processes may take to end after the last test; what is ending is not a leak."""
UNLINK_TIMEOUT_S = 10.0
"""How long a name in /dev/shm may stay that nobody uses: Python's resource tracker, also that of
other work on the machine, unlinks what a process had when that process is gone already."""
FOREVER = ("multiprocessing.resource_tracker", "multiprocessing.forkserver")
"""Helpers that Python starts once for the process that runs the tests, and that end with it."""


class LeakCheck:
    """From the start of a run of the tests to its end."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        self._outer = tempfile.gettempdir()
        # Short, because Unix sockets lie below it.
        self.folder = Path(self._outer, f"t{os.getpid()}")
        # One that is there is of a killed run, whose process id this one has got now.
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(mode=0o700)
        self._segments = _names(SHARED_MEMORY)
        self._first_seen: dict[str, str] = {}
        os.environ[MARK] = self._mark
        # pytest's own folders, which it keeps for a look at what failed, stay where they were.
        os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", self._outer)
        os.environ["TMPDIR"] = str(self.folder)
        tempfile.tempdir = None

    def after(self, test: str) -> None:
        """Note what is there after a test that was not there before it."""
        for name in _names(self.folder):
            self._first_seen.setdefault(name, test)
        for name in _names(SHARED_MEMORY) - self._segments:
            self._first_seen.setdefault(f"{SHARED_MEMORY}/{name}", test)

    def finish(self) -> list[str]:
        """One line for each thing left behind. Ends and removes what is left."""
        deadline_s = time.monotonic() + END_TIMEOUT_S
        while (processes := self._processes()) and time.monotonic() < deadline_s:
            time.sleep(0.1)
        found = [_told(process) for process in processes]
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        found += [self._with_test(f"{self.folder}/{n}", n) for n in sorted(_names(self.folder))]
        segments = self._orphaned_segments()
        deadline_s = time.monotonic() + UNLINK_TIMEOUT_S
        while segments and time.monotonic() < deadline_s:
            time.sleep(0.1)
            segments = [path for path in self._orphaned_segments() if path in segments]
        found += [self._with_test(path, path) for path in segments]
        for path in segments:
            Path(path).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)
        os.environ["TMPDIR"], tempfile.tempdir = self._outer, None
        return found

    def _with_test(self, path: str, key: str) -> str:
        return f"{path}, first seen after {self._first_seen.get(key, 'the last test')}"

    def _processes(self) -> list[psutil.Process]:
        """Those of this run that live, but the one that runs the tests."""
        forks = psutil.Process().children(recursive=True)
        found = {process.pid: process for process in forks}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.environ().get(MARK) == self._mark:
                    found[process.pid] = process
        found.pop(os.getpid(), None)
        return [process for process in found.values() if _counts(process)]

    def _orphaned_segments(self) -> list[str]:
        new = _names(SHARED_MEMORY) - self._segments
        paths = {f"{SHARED_MEMORY}/{name}" for name in new}
        return sorted(paths - in_use(paths)) if paths else []


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def _counts(process: psutil.Process) -> bool:
    try:
        if process.status() == psutil.STATUS_ZOMBIE:
            return False
        ours = process.ppid() == os.getpid()
        return not (ours and any(word in " ".join(process.cmdline()) for word in FOREVER))
    except psutil.Error:
        return False


def _told(process: psutil.Process) -> str:
    try:
        test = process.environ().get("PYTEST_CURRENT_TEST", "a test that is not known")
        return f"process {process.pid} {' '.join(process.cmdline())[:200]}, started by {test}"
    except psutil.Error:
        return f"process {process.pid}, which ended just now"


def in_use(paths: set[str]) -> set[str]:
    """Those that a living process has mapped or open, or that are gone by now.

    Told by inode: glibc makes a named semaphore under another name and then links it to its own, so
    the path that a process has mapped is not the one in the folder.
    """
    inodes = {path: _inode(path) for path in paths}
    used = {path for path, inode in inodes.items() if not inode}
    for process in psutil.process_iter():
        held = _held_inodes(process.pid)
        used |= {path for path, inode in inodes.items() if inode in held}
    return used


def _inode(path: str) -> int:
    """0 for what is gone."""
    try:
        return os.stat(path).st_ino
    except OSError:
        return 0


def _held_inodes(pid: int) -> set[int]:
    """Inodes below /dev/shm that a process has mapped or open."""
    held: set[int] = set()
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            # address, permissions, offset, device, inode, path
            fields = line.split(maxsplit=5)
            if len(fields) == 6 and fields[5].startswith(str(SHARED_MEMORY)):
                held.add(int(fields[4]))
    with contextlib.suppress(OSError):
        for descriptor in os.scandir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                if os.readlink(descriptor.path).startswith(str(SHARED_MEMORY)):
                    held.add(os.stat(descriptor.path).st_ino)
    return held
