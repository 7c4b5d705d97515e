# Every target sets .venv up by itself when it is not, or when pyproject.toml or requirements.lock changed.

# the first of these that is 3.11 or newer makes .venv
PYTHON ?= python3.11 python3 python3.12 python3.13
# the checkpoint and the recording that the twins are compared on; empty: the bundled ones
CKPT ?=
AUDIO ?=
DEVICE ?=
# one file of the twins for make diff; empty: all
FILE ?=
# the folder of make site
OUT ?=
# a report of make parity ARGS="--json FILE" for make drift
REPORT ?=
# folders of make train-default: what it makes, recorded notes, a clone of POP909, scores to play as well; and processes, of one core each
WORK ?=
NOTES ?=
POP909 ?=
SCORES ?=
PROCESSES ?= 1
# more arguments, for pytest or for parity
ARGS ?=

# not for changing: a failed set-up empties this folder
override VENV := .venv
override BIN := $(VENV)/bin
override READY := $(VENV)/.ready
# from npm, looks whether all can use the page; tests say at their end if it is not there
override AXE := $(VENV)/npm/node_modules/axe-core/axe.min.js
# from npm, for the tests of the page that transcribes by itself; of the versions in mt3_common/web/runtime.py
override RUNTIME := $(VENV)/npm/onnxruntime-web-1.30.0.tgz $(VENV)/npm/mpg123-decoder-1.0.3.tgz
# an x86 processor as one that has AVX2 and nothing newer, for oneDNN, PyTorch and XLA
override AVX2 := ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 XLA_FLAGS=--xla_cpu_max_isa=AVX2
# two tests need kernels that AVX2 lacks; tests/twins/test_processors.py has what is computed without them
override ON_AVX2 := not int8_computes_with_whole_numbers and not bfloat16_rounds_what_pack_says
# tests whose numbers depend on how a processor rounds and on which kernels it has
override ARITHMETIC := tests/twins/test_model.py tests/twins/test_decode.py tests/twins/test_train.py tests/twins/test_pre_encoder.py tests/jax_mt3 \
  tests/onnx_mt3 tests/parity/compare tests/parity/diagnosis tests/test_infer.py

.DEFAULT_GOAL := help
.PHONY: help setup test test-fast test-avx2 check lint contract format parity drift diff train-default bench isolation site lock clean

help: ## this list
	@echo 'MT3 in Flax and in PyTorch. Two commands to begin with: make parity, make test'
	@echo
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv with all that tests need (the other targets do it too)

# The mark goes away before anything changes and comes back last: whatever interrupts, the next make starts afresh.
$(READY): pyproject.toml requirements.lock
	@found=; if [ -e $@ ]; then rm $@; else \
	  for python in $(PYTHON); do \
	    if $$python -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; \
	    then found=$$python; break; fi; \
	  done; \
	  if [ -z "$$found" ]; then \
	    echo 'No Python 3.11 or newer with its venv module found. Install one (on Debian: apt-get install' \
	      'python3 python3-venv) or name it: make setup PYTHON=/path/to/python3' >&2; exit 1; \
	  fi; \
	  echo "Setting up $(VENV) with $$found: once, some minutes."; \
	  $$found -m venv --clear $(VENV); \
	fi
	@$(BIN)/python -m pip install --disable-pip-version-check --constraint requirements.lock --editable '.[dev]'
	@# renders training data; without its own requirement, pyaudio, which needs a system library and plays to a loudspeaker
	@$(BIN)/python -m pip install --disable-pip-version-check --no-deps tinysoundfont==0.3.7
	@touch $@

$(AXE): | $(READY)
	@npm install --silent --no-audit --no-fund --prefix $(VENV)/npm axe-core@4.14.1 || true

$(RUNTIME): | $(READY)
	@mkdir -p $(@D); npm pack $(shell echo $(@F) | sed 's/-\([0-9.]*\)\.tgz$$/@\1/') --silent --pack-destination $(@D) >/dev/null || true

test: $(READY) $(AXE) $(RUNTIME) ## run the tests: all, or ARGS='tests/twins/test_twins.py -k planted'
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARGS)

test-fast: $(READY) ## run the tests that compile no network, start no process and take under a second: a minute
	@$(BIN)/python -m pytest --numprocesses auto --dist worksteal -m 'not compile and not process and not slow' $(ARGS)

test-avx2: $(READY) ## run the tests of arithmetic as on a processor that has AVX2 only
	@$(AVX2) $(BIN)/python -m pytest --numprocesses auto --dist worksteal $(ARITHMETIC) -k "$(ON_AVX2)" $(ARGS)

check: lint contract test ## format, lint, import contract, tests: before every commit

lint: $(READY) ## format, lint, requirements, spelling, names, types; changes nothing
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m deptry .
	@$(BIN)/python -m codespell_lib
	@$(BIN)/python tests/tools/words.py
	@$(BIN)/python -m basedpyright

contract: $(READY) ## who may import whom
	@$(BIN)/lint-imports --no-cache

format: $(READY) ## format the code and mend what the linter can
	@$(BIN)/python -m ruff check --fix --exit-zero --quiet .
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check .

parity: $(READY) ## run both twins and compare: CKPT=path AUDIO=file DEVICE=cpu
	@$(BIN)/python -m parity $(CKPT) $(if $(AUDIO),--audio $(AUDIO)) $(if $(DEVICE),--device $(DEVICE)) $(ARGS)

drift: $(READY) ## the distance of the twins over time: REPORT=parity.json adds a run, else the history
	@cp benchmarks/drift.jsonl $(VENV)/drift.jsonl
	@$(BIN)/python -m parity drift $(VENV)/drift.jsonl $(REPORT)

diff: ## the twins side by side, lines that differ marked, and the shares of equal lines: FILE=model.py
	@for file in $(or $(FILE),$(filter $(patsubst torch_mt3/%,%,$(wildcard torch_mt3/*.py torch_mt3/*/*.py)),$(patsubst jax_mt3/%,%,$(wildcard jax_mt3/*.py jax_mt3/*/*.py)))); do \
	  echo; echo "== jax_mt3/$$file | torch_mt3/$$file"; \
	  diff --side-by-side --expand-tabs --width=240 jax_mt3/$$file torch_mt3/$$file; [ $$? -le 1 ] || exit 1; \
	done
	@echo; $(firstword $(wildcard $(BIN)/python) python3) tests/tools/twins.py $(FILE)

train-default: $(READY) ## train the default model, or go on: WORK=folder NOTES=recorded notes POP909=clone (checkpoints/README.md)
	@PYTHON=$(BIN)/python WORK='$(WORK)' NOTES='$(NOTES)' POP909='$(POP909)' SCORES='$(SCORES)' PROCESSES='$(PROCESSES)' checkpoints/recipe/default.sh

bench: $(READY) ## measure the speed: all, or ARGS='--parts decode --rounds 3 --quick' (docs/speed.md)
	@$(BIN)/python benchmarks/decode.py $(ARGS)

isolation: $(READY) ## install each twin alone in a fresh environment and transcribe with it
	@$(BIN)/python tests/tools/isolation.py $(ARGS)

site: $(READY) ## the page that transcribes in the browser, as a folder for any web server: OUT=build/site CKPT=path (needs npm)
	@$(BIN)/mt3 site $(or $(OUT),build/site) $(if $(CKPT),--checkpoint $(CKPT)) $(ARGS)

lock: $(READY) ## write requirements.lock from what .venv holds
	@echo "# Exact versions of everything that .[dev] installs, as constraints for pip; written by 'make lock'." > $(VENV)/lock
	@$(BIN)/python -m pip freeze --all --exclude pip --exclude-editable | sed 's/+cpu$$//' >> $(VENV)/lock
	@mv $(VENV)/lock requirements.lock

clean: ## take away .venv and caches
	rm -rf $(VENV) build *.egg-info .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -r {} +
