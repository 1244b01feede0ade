# make demo and make test each work alone from a bare clone (Linux, Python 3.11+, make, pip).

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
DEMO := demo-out
WORKERS ?= 2
CONSUMERS := .consumer-transformers-4.57 .consumer-lm-eval

.DEFAULT_GOAL := help
.PHONY: help demo test lint static-test thorough docs site zoo bench bench-8b writeup fixtures clean

help:  ## what there is
	@grep -hE '^[a-z0-9-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z0-9-]+):.*## /  make \1\t/' | expand -t 22

$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "gqacheck needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version): make PYTHON=python3.11 ..."; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt torch
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(READY)  ## writes a healthy, a broken and a truncated checkpoint and checks them
	rm -rf $(DEMO)
	$(BIN)/python -m fixtures.demo $(DEMO)

test: $(READY) $(CONSUMERS:=/.ready) lint  ## lint, types, every test
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile

# What uses exported folders in tests/export: each in a folder that only a process of its own puts on its path.
.consumer-%/.ready: tests/consumers/%.txt | $(READY)
	rm -rf $(@D)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --target $(@D) --requirement $<
	touch $@

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The static part in an environment of its own that has neither torch nor numpy:
#   make static-test PYTHON=python3.13
STATIC := .venv-static-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')

$(STATIC)/.ready: pyproject.toml constraints.txt
	test -x $(STATIC)/bin/python || $(PYTHON) -m venv $(STATIC)
	$(STATIC)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[static-test]'
	touch $@

static-test: $(STATIC)/.ready  ## the static tests without torch and numpy, on PYTHON
	$(STATIC)/bin/python -c 'import importlib.util as u, sys; found = [m for m in ("torch", "numpy") if u.find_spec(m)]; sys.exit(f"{found} installed in $(STATIC)" if found else 0)'
	$(STATIC)/bin/python -m pytest tests/static -n $(WORKERS) --dist loadfile

docs: $(READY)  ## writes the generated parts of README and docs anew, the output of every command among them
	$(BIN)/python -m docs.generate

site: $(READY)  ## the documentation as a site in site/, which works from the disk; strict: a broken link fails it
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

thorough: $(READY) $(CONSUMERS:=/.ready)  ## every case of every test, then thousands of random cuts of lineage and of the pruners
	GQACHECK_THOROUGH=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile
	GQACHECK_CASES=2500 $(BIN)/python -m pytest tests/static/lineage tests/lineage -n $(WORKERS) --dist load
	GQACHECK_CASES=1000 $(BIN)/python -m pytest tests/pruners/test_pruning_properties.py tests/contract/test_own_pruners.py -n $(WORKERS) --dist load

bench: $(READY)  ## time and memory side by side with what people run today
	$(BIN)/python -m benchmarks.static
	$(BIN)/python -m benchmarks.lineage
	$(BIN)/python -m benchmarks.export
	$(BIN)/python -m benchmarks.plugin

bench-8b: $(READY)  ## export of an 8B checkpoint beside cp (33 GB of disk, removed afterwards)
	$(BIN)/python -m benchmarks.export --8b

writeup: $(READY)  ## the table of docs/pairing.md, measured anew
	$(BIN)/python -m benchmarks.writeup --write

fixtures: $(READY)  ## trains the three fixture models anew (half an hour)
	$(BIN)/python -m fixtures.train

clean:
	rm -rf $(VENV) .venv-static-* .consumer-* $(DEMO) site build dist .pytest_cache .mypy_cache .ruff_cache
