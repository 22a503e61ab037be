# Two commands do all their own set-up: `make sandbox` and `make test`.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
OUT ?= out
ARGS ?=

.DEFAULT_GOAL := help
.PHONY: help sandbox test test-services test-units check lint bench clean

help:
	@echo "make sandbox   a whole consortium on this machine, with a report in $(OUT)/   (ARGS=... for its options)"
	@echo "make test      all tests"
	@echo "make check     ruff, mypy, import contracts and all tests"
	@echo "make bench     pytest-benchmark suite (peers optional)"
	@echo "make clean     remove the virtual environment and reports"

$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Subrosa needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --disable-pip-version-check --quiet -c constraints.txt -e '.[dev]'
	touch $@

sandbox: $(VENV)/.installed
	$(BIN)/subrosa sandbox --out $(OUT) $(ARGS)

# Two at once: those that start processes mostly wait, the others keep one core busy. Each prints when it has ended.
test: $(VENV)/.installed
	@$(MAKE) --no-print-directory --jobs=2 --keep-going --output-sync=target test-services test-units

test-services:
	$(BIN)/pytest tests/e2e tests/integration

test-units:
	$(BIN)/pytest --ignore=tests/e2e --ignore=tests/integration

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: lint test

bench: $(VENV)/.installed
	$(BIN)/pytest tests/bench --benchmark-enable --benchmark-only

clean:
	rm -rf $(VENV) $(OUT)
