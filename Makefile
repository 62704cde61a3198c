# Two commands for a fresh machine with Python 3.11-3.13 and make:
#   make demo   sets everything up and trains a network privately on the embedded data
#   make test   sets everything up and runs lint, type check and tests; one of them builds the documentation
# make docs builds the documentation in build/site.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin

.PHONY: demo test lint docs slow clean

# lightonml pins a numexpr that no longer builds, so it is installed without its pins, after them.
$(VENV)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev,docs,lighton]"
	$(BIN)/python -m pip install --quiet --no-deps --constraint constraints.txt lightonml
	touch $@

demo: $(VENV)/.installed
	$(BIN)/optical-dfa train --out runs/demo --overwrite

lint: $(VENV)/.installed
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	OMP_NUM_THREADS=1 $(BIN)/pytest -n 2 --dist worksteal

docs: $(VENV)/.installed
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

slow: $(VENV)/.installed
	$(BIN)/pytest -m slow

clean:
	rm -rf $(VENV) runs
