# `make run` opens the explorer; `make test` is the whole check. Both create .venv when needed.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
STAMP := $(VENV)/.installed
STAMP_TEST := $(VENV)/.installed-test
# Tiny models: more threads only wait for each other.
export OMP_NUM_THREADS ?= 1

.PHONY: run test check lint types imports wheel unit soak benchmark schema clean

run: $(STAMP)
	@$(BIN)/emotui

$(BIN)/python:
	@echo "Creating $(VENV) ..."
	@$(PYTHON) -m venv $(VENV)

# torch first and by exact version, so that an index with CPU builds can serve one.
$(VENV)/.torch: constraints.txt | $(BIN)/python
	@echo "Installing torch ..."
	@$(PIP) install "$$(grep '^torch==' constraints.txt)"
	@touch $@

$(STAMP): $(VENV)/.torch pyproject.toml constraints.txt
	@echo "Installing emotui and what it needs (transformers, sae-lens, textual, ...) ..."
	@$(PIP) install -c constraints.txt -e .
	@touch $@

$(STAMP_TEST): $(STAMP)
	@echo "Installing what the tests need ..."
	@$(PIP) install -c constraints.txt -e ".[test]"
	@touch $@

test: check unit

check: lint types imports wheel

lint: $(STAMP_TEST)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: $(STAMP_TEST)
	$(BIN)/mypy

imports: $(STAMP_TEST)
	$(BIN)/lint-imports

wheel: $(STAMP_TEST)
	$(BIN)/python scripts/check_wheel.py

unit: $(STAMP_TEST)
	$(BIN)/python -m pytest -n 2 --dist loadgroup

soak: $(STAMP_TEST)
	$(BIN)/python -m pytest -m soak

benchmark: $(STAMP_TEST)
	$(BIN)/python benchmarks/terminal.py

schema: $(STAMP_TEST)
	$(BIN)/python scripts/write_schema.py

clean:
	rm -rf $(VENV) build dist
