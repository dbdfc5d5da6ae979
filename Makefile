# Two targets do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest -n auto --maxprocesses 4

.PHONY: demo test fast lint format hooks clean

demo: $(VENV)/installed  ## checkpoint -> ONNX -> verified -> measured, on the trained digits model
	$(BIN)/svit-deploy quickstart -o quickstart --force

test: $(VENV)/installed lint  ## linters, order of the folders, type checker, all tests, coverage
	$(PYTEST) --cov --cov-report=term:skip-covered

fast: $(VENV)/installed  ## the tests that take no time, under a minute
	$(PYTEST) -m "not slow and not gpu"

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

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

clean:
	rm -rf $(VENV) quickstart
