# Every task of the project. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers halve the time of the suite; each imports torch, timm and transformers (about 1.5 GB).
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help setup demo test check format bench bench-planner accuracy zoo mutants golden clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install everything (again only when pyproject.toml changed)

$(STAMP): pyproject.toml
	@echo "installing into $(VENV): torch is large, the first time takes minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[timm,hf,report,dev]'
	@touch $@

demo: setup  ## make the built-in tiny ViT faster: works offline, in a minute or two
	$(BIN)/prunec optimize shapes --policy evit --keep 0.5

test: check  ## run every check, then every test (JOBS=0 for one worker)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

check: setup  ## lint, formatting, types, import layers
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: setup  ## rewrite the sources in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup  ## measure; a result names the machine that it was taken on
	$(BIN)/python benchmarks/bench.py
	$(BIN)/python benchmarks/ragged.py --only time
	$(BIN)/python benchmarks/ragged.py --only memory

bench-planner: setup  ## whether plans keep their word: predictions, decisions, accuracy (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/planner.py

accuracy: setup  ## what every preset costs in accuracy on the built-in classifier
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy.py

zoo: setup  ## every Vision Transformer of timm and Hugging Face: transformed, or refused with the reason
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py

mutants: setup  ## plant wrong rewrites, see who catches each, and write docs/mutants.md (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

golden: setup  ## rewrite the golden files; review the diff like code
	$(BIN)/python -m pytest --update-golden

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
