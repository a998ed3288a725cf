#!/usr/bin/env bash
# Start a plain `vllm serve` whose routed experts are computed by a running mesh.
#
#   run.sh MODEL [URL] [vLLM flags ...]
#
# MODEL  folder of the checkpoint the mesh serves
# URL    endpoint of the mesh (default http://127.0.0.1:8000)
set -euo pipefail

if [ $# -lt 1 ]; then
    echo "usage: $0 MODEL [URL] [vLLM flags ...]" >&2
    exit 2
fi
model=$1
url=${2:-http://127.0.0.1:8000}
shift $(($# > 1 ? 2 : 1))

# The virtual environment of the checkout, where there is one and no other is active.
bin=$(cd "$(dirname "$0")/../.." && pwd)/.venv/bin
if [ -z "${VIRTUAL_ENV:-}" ] && [ -d "$bin" ]; then
    PATH=$bin:$PATH
fi

# Where the mesh tells its engines about shards. On the same machine it is a Unix socket; in a
# cluster it is TCP, and EXPERTMESH_SECRET has to be the mesh's.
EXPERTMESH_ADDRESS=$(python -m orchestrator.cli status --url "$url" --json |
    python -c 'import json, sys; print(json.load(sys.stdin)["address"])')
export EXPERTMESH_ADDRESS
echo "experts come from $EXPERTMESH_ADDRESS"

# A CPU engine beside shards: a small KV cache, and no cores of its own.
export VLLM_CPU_KVCACHE_SPACE=${VLLM_CPU_KVCACHE_SPACE:-1}
export VLLM_CPU_OMP_THREADS_BIND=${VLLM_CPU_OMP_THREADS_BIND:-nobind}
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}

if python -c 'from importlib.metadata import version; version("vllm")' 2>/dev/null; then
    serve=(vllm serve)
else
    # `vllm` of the package vllm-cpu 0.32 asks for the version of one called vllm, and fails; this
    # is what it would run.
    serve=(python -m vllm.entrypoints.launchers.api_server.entry --model)
fi
exec "${serve[@]}" "$model" --port 8001 --enforce-eager "$@"
