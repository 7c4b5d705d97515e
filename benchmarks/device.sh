#!/usr/bin/env bash
# Everything that a GPU has to show, in at most ten minutes: parity of CPU and GPU in every precision, greedy tokens,
# rates of decoding and from file to notes, both twins, both sizes. Tables with the device's name in FOLDER/device.md.
#   benchmarks/device.sh [FOLDER]              on a machine with a GPU and an environment of the project
#   benchmarks/device.sh --rehearse [FOLDER]   the same steps on the CPU, toy size: does it run?
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
[ -x "$python" ] || python=python3
export XLA_PYTHON_CLIENT_PREALLOCATE=false TF_CPP_MIN_LOG_LEVEL=3 PYTHONUNBUFFERED=1
exec timeout --kill-after=5 600 "$python" benchmarks/device.py "$@"
