# Two commands on a fresh machine: `make demo` and `make test`. Needs Python 3.11+, make and a package index.

PYTHON ?= python3
VENV ?= .venv
TOOLS ?= .venv-tools
OUTPUT ?= outputs
# Two workers of one thread each use two cores far better than one worker of two threads.
PYTEST_WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
# A worker whose test waited for ever (pyproject.toml) is not started again, to wait again.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(PYTEST_WORKERS) --dist loadfile --max-worker-restart 0
MADE_FROM := pyproject.toml constraints.txt

.PHONY: help demo install tools test test-full lint format docs clean

help:
	@echo "make demo       install into $(VENV) and draw three pictures into $(OUTPUT)/"
	@echo "make test       the default suite (no network, no GPU)"
	@echo "make test-full  what is slow: kill tests, full-size shapes, the commands in the docs"
	@echo "make tools      install img2dataset for vega data download, in an environment of its own ($(TOOLS)/)"
	@echo "make lint       ruff, pyright, import-linter"
	@echo "make docs       fill the generated tables of README and docs again"
	@echo "make clean      remove $(VENV), $(TOOLS) and everything built (never pictures)"

# Each stamp is newer than the files that decide what is installed, so running make again installs nothing.
$(VENV)/.stamp-base: $(MADE_FROM)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is too old or missing; allowed: Python 3.11 or newer; try make PYTHON=/path/to/python3.11" >&2; exit 2; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(PIP) --editable .
	@touch $@

$(VENV)/.stamp-test: $(VENV)/.stamp-base
	$(PIP) --editable '.[test]'
	@touch $@

$(VENV)/.stamp-lint: $(VENV)/.stamp-test
	$(PIP) --editable '.[lint]'
	@touch $@

# Needs older libraries than we do (webdataset below 0.3, albumentations below 2).
$(TOOLS)/.stamp: Makefile
	test -x $(TOOLS)/bin/python || $(PYTHON) -m venv $(TOOLS)
	$(TOOLS)/bin/python -m pip install --quiet --disable-pip-version-check img2dataset==1.47.0
	@touch $@

install: $(VENV)/.stamp-base

tools: $(TOOLS)/.stamp

demo: $(VENV)/.stamp-base
	@start=$$(date +%s); \
	for prompt in "a cat next to a slice of pizza" "two red apples on a blue background" "a dog in the snow"; do \
	  $(BIN)/vega generate "$$prompt" --seed 0 --output $(OUTPUT) || exit $$?; \
	done; \
	echo "three pictures are in $(abspath $(OUTPUT)); it took $$(( $$(date +%s) - start )) s (loading the model each time)"

test: $(VENV)/.stamp-test
	$(PYTEST) -m "not slow and not gpu"

test-full: $(VENV)/.stamp-test $(TOOLS)/.stamp
	$(PYTEST) -m "slow and not gpu"

lint: $(VENV)/.stamp-lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports --no-cache

format: $(VENV)/.stamp-lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.stamp-test
	$(BIN)/python scripts/fill_readme.py

clean:
	rm -rf $(VENV) $(TOOLS) build dist .pytest_cache .ruff_cache .hypothesis .import_linter_cache src/*.egg-info
