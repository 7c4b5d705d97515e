#!/usr/bin/env bash
# Run benchmarks/yourmt3_speed.py beside the published code (PyPI yourmt3 0.1.4), which gets an environment of its own.
#   benchmarks/yourmt3_speed.sh [--seconds 33 --ends fitted,random] or [--parts]
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-.venv/bin/python}
folder=${YOURMT3_ENV:-.venv-yourmt3}
if [ ! -e "$folder/.ready" ]; then
    "$python" -m venv "$folder"
    # the project's libraries are used as they are; only what yourmt3 needs beside them is new
    "$python" -c 'import sys; print("\n".join(p for p in sys.path if p.endswith("site-packages")))' \
        >"$("$folder/bin/python" -c 'import site; print(site.getsitepackages()[0])')/project.pth"
    pip=("$folder/bin/python" -m pip install --quiet --disable-pip-version-check)
    "${pip[@]}" --no-deps 'yourmt3==0.1.4' 'transformers==4.45.1' 'torchaudio==2.11.0'
    "${pip[@]}" 'tokenizers>=0.20,<0.21' 'huggingface_hub<1.0' lightning regex scikit-learn
    # its compiled part is built for CUDA, and not used here
    rm -f "$folder"/lib/python3*/site-packages/torchaudio/lib/*.so
    touch "$folder/.ready"
fi
exec "$python" benchmarks/yourmt3_speed.py --published-python "$folder/bin/python" "$@"
