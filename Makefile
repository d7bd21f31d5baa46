# A fresh machine needs Python 3.11 or later, a C compiler, make and git. Everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
# One thread per process: runs and tests are parallel by process, and one thread is what makes them repeatable.
export OMP_NUM_THREADS = 1

.PHONY: quickstart test check soak bench format clean

.venv/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,interpreter]'
	touch $@

quickstart: .venv/installed  ## a real study, from nothing to verdicts, in a few minutes
	$(BIN)/winnow run examples/quickstart.toml

test: .venv/installed  ## the tests that every commit keeps green
	$(BIN)/pytest -n 2 --dist worksteal

check: .venv/installed  ## style, types, layers
	$(BIN)/ruff check src tests bench
	$(BIN)/ruff format --check src tests bench
	$(BIN)/pyright --pythonpath $(BIN)/python
	$(BIN)/lint-imports

soak: .venv/installed  ## the long suites: hundreds of kills, full calibration
	$(BIN)/pytest -m soak -n 2 --dist worksteal

.venv/bench: .venv/installed
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev,interpreter,bench]'
	touch $@

bench: .venv/bench  ## ratios against baselines measured in the same run; tables go to bench/results; fails at the end if one missed its goal
	missed=0; \
	for name in attention compare data decode loop programs startup table; do $(BIN)/python bench/$$name.py || missed=1; done; \
	for name in calibration conv train_step; do $(BIN)/python bench/$$name.py > bench/results/$$name.md || missed=1; done; \
	exit $$missed

format: .venv/installed
	$(BIN)/ruff check --fix src tests bench
	$(BIN)/ruff format src tests bench

clean:
	rm -rf .venv build dist src/*.egg-info .pytest_cache .ruff_cache .hypothesis
