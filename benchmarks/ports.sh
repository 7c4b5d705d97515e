#!/usr/bin/env bash
# Run benchmarks/ports.py with the last transformers that has Flax, in an environment of its own beside the project's.
#   benchmarks/ports.sh [--markdown FILE]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${PORTS_ENV:-.venv-ports}
if [ ! -e "$folder/.ready" ]; then
    "$python" -m venv "$folder"
    # the project's libraries are used as they are; only transformers and what it needs is new
    "$python" -c 'import site, sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' \
        >"$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/project.pth"
    "$folder/bin/python" -m pip install --quiet --disable-pip-version-check 'transformers==4.57.6'
    touch "$folder/.ready"
fi
USE_TF=0 exec "$folder/bin/python" benchmarks/ports.py "$@"
