# make demo        quantize, judge and run a small model, from a fresh clone
# make test        what CI runs: lint, types, all tests that take no demo model
# make check-all   the rest too: slow tests and the demo
# make clean       remove what make made, but for the downloaded model

PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed

.PHONY: demo test lint check-all clean
.DEFAULT_GOAL := demo

# The stamp is written last, so that an installation that broke off is started again, and a second run is instant.
$(STAMP): pyproject.toml constraints.txt $(wildcard native/*)
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test]'
	touch $@

demo: $(STAMP)
	$(BIN)/python examples/demo.py

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/pytest -m "not slow"

check-all: test
	$(BIN)/pytest -m slow
	$(BIN)/python examples/demo.py

clean:
	rm -rf .venv .out build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests examples benchmarks -name __pycache__ -prune -exec rm -rf {} +
