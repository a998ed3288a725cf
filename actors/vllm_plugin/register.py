"""Entry point `vllm.general_plugins`: what vLLM calls in each of its processes.

Inert unless asked for by environment, so installing ExpertMesh changes nothing for a plain
`vllm serve`:
  EXPERTMESH_ADDRESS     routed experts are computed by the mesh at this address
  EXPERTMESH_V4_ON_CPU=1 the DeepSeek-V4 fixes for CPUs, without a mesh
  EXPERTMESH_ENGINE_PARENT  die with the engine actor that started this process
"""

import gc
import logging
import os

from actors.vllm_plugin.core_process import leave_no_semaphores
from actors.vllm_plugin.fate_sharing import share_fate

log = logging.getLogger("vllm.expertmesh")

V4_ON_CPU_VARIABLE = "EXPERTMESH_V4_ON_CPU"
# Spelled out here, not imported: a vLLM without a mesh should not pay for importing ours.
ADDRESS_VARIABLE = "EXPERTMESH_ADDRESS"

_registered = False


def register() -> None:
    """Install what the environment asks for; vLLM may call this several times in one process."""
    global _registered  # noqa: PLW0603 - vLLM keeps one registry per process, so does this
    if _registered:
        return
    _registered = True
    address = os.environ.get(ADDRESS_VARIABLE)
    if share_fate():
        gc.enable()  # put off by `actors.vllm_plugin.core_process`
        leave_no_semaphores()
    if address or os.environ.get(V4_ON_CPU_VARIABLE) == "1":
        from actors.deepseek_v4_cpu.install import install

        for fix in install():
            log.info("DeepSeek-V4 on CPU: %s", fix)
    if address:
        from actors.vllm_plugin.compile_cache import cache_variables
        from actors.vllm_plugin.loader import register_loader
        from actors.vllm_plugin.routed_experts import register_routed_experts
        from actors.vllm_plugin.step_marks import create_marks

        create_marks()
        os.environ.update(cache_variables())
        register_routed_experts()
        register_loader()
        log.info("routed experts are served by the mesh at %s", address)
