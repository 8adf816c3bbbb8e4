PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed

# Modules of tests side by side; tensors as small as theirs gain nothing from threads of their own.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

.PHONY: demo test test-fast lint docs

demo: $(INSTALLED)  ## active learning of alanine dipeptide, small
	$(BIN)/ubmd learn experiment=ala2_demo

test: lint  ## everything: style, types, all tests
	$(PYTEST)

test-fast: $(INSTALLED)  ## the tests that take seconds
	$(PYTEST) -m "not slow"

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
