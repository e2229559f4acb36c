# make setup | sweep | real | test | check | docs | lock. A new machine needs python3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check
TORCH := 2.13.0
MINOR := "import sys; print(*sys.version_info[:2])"
FOUND := $(if $(wildcard $(VENV)/.ready),uses,made)
PYTEST := $(BIN)/python -m pytest
# One process runs the tests that start Ray or vLLM, the other one the rest (tests/conftest.py).
PARALLEL := -n 2 --no-loadscope-reorder

.PHONY: setup sweep real test test-quick test-benchmarks test-faults test-cluster check docs lock
.PHONY: bench-loss bench-train bench-eval bench-scale gpu-check
sweep: setup
	@$(BIN)/python pipelines/full_sweep.py --preset builtin

real: setup
	@$(BIN)/python pipelines/full_sweep.py --preset gsm8k

test: setup
	@$(PYTEST) $(PARALLEL) --durations 15

test-quick: setup
	@$(PYTEST) $(PARALLEL) -m "not integration and not faults"

test-benchmarks: setup
	@$(PYTEST) -m benchmarks

test-faults: setup
	@$(PYTEST) -m faults

test-cluster: setup
	@tests/cluster/sandbox.sh $(PYTEST) -m cluster -p no:cacheprovider tests/cluster

bench-loss: setup
	@$(BIN)/python -m tests.benchmarks.loss --json docs/results/loss/benchmark.json
	@$(BIN)/python -m tests.benchmarks.integrations --json docs/results/loss/integrations.json

bench-train: setup
	@$(BIN)/python -m tests.benchmarks.train --json docs/results/training/benchmark.json

bench-eval: setup
	@$(BIN)/python -m tests.benchmarks.grading --json docs/results/scoring/grading.json
	@$(BIN)/python -m tests.benchmarks.sandbox
	@$(BIN)/python -m tests.benchmarks.evals --json docs/results/scoring/benchmark.json

bench-scale: setup
	@$(BIN)/python -m tests.benchmarks.scale --json docs/results/scale/benchmark.json

# Without .venv: where torch, triton, transformers, peft and pytest are installed, but no Ray.
gpu-check:
	@$(if $(wildcard $(VENV)/.ready),$(BIN)/python,python3) -m tests.gpu.check --json docs/results/gpu/check.json

docs: setup
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "documentation: build/site/index.html"

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

lock: setup
	@$(BIN)/python -m tests.assets.lock

setup: $(VENV)/.ready
ifeq ($(origin PYTHON),command line)
	@test "$$($(PYTHON) -c $(MINOR))" = "$$($(BIN)/python -c $(MINOR))" || { echo "$(VENV) has another Python" \
	    "than PYTHON=$(PYTHON): remove $(VENV), or leave PYTHON out" >&2; exit 1; }
endif
	@echo "$(FOUND) $(VENV): $$(cat $(VENV)/.ready)"

$(VENV)/.ready: requirements.txt requirements-cpu.txt requirements-gpu.txt requirements-docs.txt pyproject.toml
	@echo "setting up $(VENV): some minutes, about 5 GB"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(shell command -v nvidia-smi),)
# The default index may have CUDA builds of torch only; PyTorch's own index has the CPU build.
	@$(PIP) torch==$(TORCH)+cpu 2>/dev/null || \
	    $(PIP) torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
	@$(PIP) -r requirements-cpu.txt
else
	@$(PIP) -r requirements-gpu.txt
endif
	@$(PIP) -r requirements-docs.txt
	@$(PIP) --editable .
	@$(BIN)/python -c "import platform, torch; from importlib import metadata as m; \
	    print(f'{platform.python_implementation()} {platform.python_version()}, torch {torch.__version__},', \
	    ', '.join(f'{p} {m.version(p)}' for p in ('ray', 'transformers', 'mlflow')))" > $@.tmp
	@mv $@.tmp $@
