# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4
# ONNX Runtime for GPUs where there is one, or where .venv has it: two of them overwrite each other.
HAS_GPU := $(shell command -v nvidia-smi)$(wildcard $(VENV)/lib/python*/site-packages/onnxruntime_gpu-*)
RUNTIME ?= $(if $(HAS_GPU),gpu,cpu)

.PHONY: demo test fast fuzz kills lint format hooks docs mutants gpu-report clean

demo: $(VENV)/demo  ## checkpoint -> ONNX -> verified -> measured, on the trained digits model
	$(BIN)/svit-deploy quickstart -o quickstart --force

test: $(VENV)/installed lint  ## linters, order of the folders, type checker, all tests, coverage
	$(PYTEST) --cov --cov-report=term:skip-covered

fast: $(VENV)/installed  ## the tests that take no time, in about a minute
	$(PYTEST) -m "not slow and not gpu"

fuzz: $(VENV)/installed  ## ten thousand damaged files through the command line
	$(BIN)/python -m tests.fuzz --cases 10000

kills: $(VENV)/installed  ## two hundred kills of commands that write
	$(BIN)/python -m tests.kills --kills 200 --signals 100

lint: $(VENV)/installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/mypy

format: $(VENV)/installed  ## mends what ruff can mend
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

hooks: $(VENV)/installed  ## runs format, lint and the order of the folders before every commit
	$(BIN)/pre-commit install

docs: $(VENV)/installed  ## the pages as a site; a broken link fails it
	$(BIN)/sphinx-build -c docs -q -E -W --keep-going . build/docs
	@echo "build/docs/index.html; links that lead outside: build/docs/external_links.txt"

mutants: $(VENV)/installed  ## faults put into exported graphs, and which of them verify refuses; takes long
	mkdir -p build
	$(BIN)/python benchmarks/mutants.py --json build/mutants.json

gpu-report: $(VENV)/installed  ## on a GPU: every runtime that is there, verified and measured, into docs/gpu.md
	$(BIN)/python -m pytest -m gpu -q
	$(BIN)/python benchmarks/gpu.py --output build/gpu --page docs/gpu.md

$(VENV)/demo: EXTRAS = $(RUNTIME),torch
$(VENV)/installed: EXTRAS = $(RUNTIME),dev
$(VENV)/demo $(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[$(EXTRAS)]'
	touch $@

clean:
	rm -rf $(VENV) build quickstart
