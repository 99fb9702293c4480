# Every task of the project. `make help` lists them.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Two workers halve the time of the suite; each imports torch, timm and transformers (about 1.5 GB).
JOBS ?= 2
# What `make coverage` runs.
TESTS ?= @tests/fast.txt
INSTALL := $(BIN)/python -m pip install --quiet --editable '.[timm,hf,onnx,report,dev]'
# Each worker starts with one half of the tests, in order: what tests of a file share is made once.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal

define NOT_TESTED
WARNING: pip could not install the versions of constraints.txt; its reason stands above.
         Installing those that pip takes instead: the tests may not have been run on them.
         Which they are is printed below, and at the start of every test run.
endef
export NOT_TESTED

.DEFAULT_GOAL := help
.PHONY: help setup setup-newest demo test test-fast matrix coverage compat check format bench bench-targets bench-planner accuracy real zoo mutants security golden clean

help:  ## list the tasks
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install the tested versions (again when constraints.txt or pyproject.toml changed)

$(STAMP): pyproject.toml constraints.txt
	@echo "installing into $(VENV): torch is large, the first time takes minutes"
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --constraint constraints.txt || { echo "$$NOT_TESTED" >&2; $(INSTALL); }
	@$(BIN)/python tests/versions.py
	@touch $@

setup-newest:  ## the same with the newest versions that pip takes, whatever constraints.txt says
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(INSTALL) --upgrade --upgrade-strategy eager
	@$(BIN)/python tests/versions.py
	@touch $(STAMP)

demo: setup  ## make the built-in tiny ViT faster: works offline, in a minute or two
	$(BIN)/prunec optimize shapes --policy evit --keep 0.125

test: check  ## run every check, then every test (JOBS=0 for one worker)
	$(PYTEST)

test-fast: setup  ## the tests to run between two edits: about a minute
	$(PYTEST) -q @tests/fast.txt

matrix: setup  ## every kind of policy on every target that runs here (a quarter of an hour)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m matrix -rP tests/targets/test_matrix.py

coverage: setup  ## what the fast tests cover, and whether it is enough (TESTS=tests for all of them)
	rm -f .coverage .coverage.*
	OMP_NUM_THREADS=1 $(BIN)/coverage run -m pytest -n $(JOBS) --dist worksteal -q $(TESTS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report

compat: setup  ## the core of the tests on the oldest, tested and newest versions; writes docs/compat.md
	$(BIN)/nox

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
	$(BIN)/python benchmarks/compiling.py

bench-targets: setup  ## dense and pruned on every target that runs here
	$(BIN)/python -m pip install --quiet --editable '.[onnx,openvino]'
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/targets.py

bench-planner: setup  ## whether plans keep their word: predictions, decisions, accuracy (half an hour)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/planner.py

accuracy: setup  ## what every preset costs in accuracy on the built-in classifier
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/accuracy.py

real: setup  ## what every preset keeps of real weights, beside random tokens, ToMe and a smaller picture (QUICK=--quick)
	$(BIN)/python -m pip install --quiet onnx onnxruntime
	$(BIN)/python benchmarks/real/judge.py $(QUICK)

zoo: setup  ## every Vision Transformer of timm and Hugging Face: transformed, or refused with the reason
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/zoo.py

security: setup  ## write docs/security.md: what hostile files get
	rm -rf build/hostile
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -W ignore -m tests.hostile.runner build/hostile --page

mutants: setup  ## plant wrong rewrites, see who catches each, and write docs/mutants.md (minutes)
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/mutants.py

golden: setup  ## rewrite the golden files; review the diff like code
	$(BIN)/python -m pytest --update-golden

clean:  ## remove .venv, caches and build output
	rm -rf $(VENV) .nox .coverage build dist .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
