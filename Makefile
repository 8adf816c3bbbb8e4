PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

.PHONY: demo test test-fast lint docs

demo: $(INSTALLED)  ## active learning of alanine dipeptide, small
	$(BIN)/ubmd learn experiment=ala2_demo

test: lint  ## everything: style, types, all tests
	$(BIN)/pytest

test-fast: $(INSTALLED)  ## the tests that take seconds
	$(BIN)/pytest -m "not slow"

lint: $(INSTALLED)  ## style and types
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/basedpyright

docs: $(INSTALLED)  ## the documentation, in build/site; a broken link is an error
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

.venv:
	$(PYTHON) -m venv .venv

$(INSTALLED): pyproject.toml constraints.txt | .venv
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[dev,docs]'
	touch $@
