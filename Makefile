# Everything runs in .venv, which is made when it is missing and brought up to date when the pins change.
PYTHON ?= python3
BIN := .venv/bin
STAMP := .venv/.installed
DOCS := .venv/.docs
RUNTIME := build/onnxruntime-web

.PHONY: demo test test-all lint bench docs install clean

demo: $(STAMP)  ## train a capsule network on real handwritten digits
	$(BIN)/torchcaps train digits

test: lint  ## style, types and all quick tests, on all cores
	$(BIN)/python -m pytest -rs -n auto --dist worksteal

test-all: lint  ## the same and the long checks
	$(BIN)/python -m pytest -rs -n auto --dist worksteal -m "slow or not slow"

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/pyright

bench: $(STAMP)  ## time what is claimed to be fast; run it while nothing else runs
	$(BIN)/python benchmarks/everything.py

docs: $(DOCS)  ## build the site in build/site; a warning or a broken link fails it
	-test -d $(RUNTIME) || npm install --silent --prefix $(RUNTIME) --ignore-scripts onnxruntime-web@1.30.0
	$(BIN)/python -m sphinx -b html -c docs -d build/.doctrees -n -W --keep-going -q . build/site

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "torchcaps needs Python 3.11 or newer: make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

$(DOCS): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $(DOCS)

clean:
	rm -rf .venv build docs/generated docs/tutorials
