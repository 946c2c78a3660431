# `make demo` runs the main job on bundled real data, `make test` passes the tests, `make lint` checks style and types.
# Each creates .venv in the checkout root when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch is small; elsewhere `make TORCH=torch` takes the registry's default build.
TORCH ?= torch==2.13.0

.PHONY: demo test lint format install clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test,lint]"
	touch $@

install: $(VENV)/.installed

demo: install
	$(BIN)/ostinato demo forecast

test: install
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
