# Two commands on a fresh machine: `make test` and, once CodeT5 runs end to end, `make demo`.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: test check

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,parquet]'
	touch $(READY)

test: $(READY)
	$(BIN)/pytest

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
