# Two commands on a fresh machine: `make demo` runs the main job, `make test` passes the tests.
PYTHON ?= python3
BIN := .venv/bin
READY := .venv/ready

.PHONY: demo test check

$(READY): pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q -c constraints.txt torch
	$(BIN)/pip install -q -c constraints.txt -e '.[dev,parquet,minilm]'
	touch $(READY)

demo: $(READY)
	$(BIN)/leaven run codet5 dual=0.25 scratch=true "finetune_rates=[0.01]" "pretrain=900 steps" "finetune=300 steps" --out runs/demo
	$(BIN)/leaven report runs/demo

test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist loadfile

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m leaven.evidence.readme_table --check README.md
