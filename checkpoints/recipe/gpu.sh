#!/usr/bin/env bash
# Train the default model for minutes on a machine with a GPU: gpu.sh --help
#   gpu.sh pack WORK FOLDER | train FOLDER OUT [--minutes 9] | unpack OUT CHECKPOINT | --rehearse [FOLDER]
# PYTHON   the interpreter; default: .venv/bin/python of the project, else python3
# TRAINER  torch_mt3 or jax_mt3
set -euo pipefail
root=$(cd "$(dirname "$0")/../.." && pwd)
python=${PYTHON:-$root/.venv/bin/python}
[ -x "$python" ] || [ -n "${PYTHON:-}" ] || python=python3
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3
# the packages of a pack, which the Python program itself needs
if [ "${1:-}" = train ] && compgen -G "${2:-}/wheels/*.whl" > /dev/null; then
  MT3_GPU_SITE=$(mktemp -d)
  export MT3_GPU_SITE
  "$python" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$MT3_GPU_SITE" "$2"/wheels/*.whl ||
    { rm -rf "$MT3_GPU_SITE"; exit 1; }
  export PYTHONPATH=$MT3_GPU_SITE${PYTHONPATH:+:$PYTHONPATH}
fi
exec "$python" "$root/checkpoints/recipe/gpu.py" "$@"
