# `make help` lists the targets. Each sets up what it needs: a `.venv` with the pinned packages, and elite_pl, editable.

PYTHON ?= python3
ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

# The networks are small: two processes are faster than two threads.
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL := help
.PHONY: help setup demo test coverage lowest python3.12 python3.13 lint format bench map docs results install-check pins clean

help: ## this list
	@awk -F ':.*## ' '/^[a-z0-9.% -]+:.*## /{printf "make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(READY) ## the environment alone; PYTHON=python3.12 for another Python

# Done again when the packages asked for have changed. pip brings uv, and uv all else: of torch and torchvision it takes
# a pair that fits. Compiled at once, because an import would take three times as long where Python may not write.
$(READY): requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' || \
	  { echo 'elite_pl runs on Python 3.11 to 3.13: make PYTHON=python3.12 ...' >&2; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check "$$(grep '^uv==' requirements.txt)"
	$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -r requirements.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@$(call found_first,$(BIN))
	@touch $@

# In the folder that holds this one, Python would take this one for the package, by its name.
found_first = echo '$(CURDIR)' >"$$($(1)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))')/elite_pl_checkout.pth"

demo: $(READY) ## five methods on digits of which a tenth or half are anomalies: 90 runs, one table, a few minutes
	$(BIN)/python -m elite_pl.train experiment=demo >/dev/null
	@$(BIN)/python -m elite_pl.report outputs/demo --columns pollution --against auto

test: $(READY) ## all fast tests, two at a time; ARGS="-k digits -n 0" goes to pytest
	$(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

coverage: $(READY) ## the fast tests, with the share of lines and branches that they reach: 90 % at least
	$(BIN)/python -m pytest -n 2 --dist worksteal --cov --cov-report=term $(ARGS)

lowest: $(READY) ## the fast tests with the oldest packages that pyproject.toml allows, in .venv-lowest
	test -x .venv-lowest/bin/python || $(PYTHON) -m venv .venv-lowest
	$(BIN)/uv pip install --quiet --python .venv-lowest/bin/python --resolution lowest-direct --editable '.[dev]'
	@$(call found_first,.venv-lowest/bin)
	.venv-lowest/bin/python -m pytest -n 2 --dist worksteal $(ARGS)

python3.12: ## the fast tests with Python 3.12, where it is installed, in .venv-python3.12
python3.13: ## the same with Python 3.13
python3.12 python3.13:
	$(MAKE) test PYTHON=$@ VENV=.venv-$@

lint: $(READY) ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(READY) ## what ruff can repair by itself
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## what steps and runs cost, as ratios, ten minutes; writes speed.md and stacked.md in benchmarks/results
	$(BIN)/python benchmarks/speed.py --write
	$(BIN)/python benchmarks/stacked.py --write

# Dependencies as in requirements.txt, but only those that the wheel asks for: one that it forgets is missing here.
install-check: $(READY) ## the wheel with its dependencies in an environment of its own, run from an empty directory
	@set -eu; place=$$(mktemp -d); trap 'rm -rf "$$place"' EXIT; mkdir $$place/empty; \
	rm -rf build; $(BIN)/python -m build --wheel --no-isolation --outdir $$place . >$$place/log 2>&1 || { cat $$place/log; exit 1; }; \
	$(BIN)/python -m venv --without-pip $$place/venv; \
	$(BIN)/uv pip install --quiet --python $$place/venv/bin/python --constraint requirements.txt $$place/*.whl; \
	cd $$place/empty; \
	$$place/venv/bin/elite-pl-train logger=none epochs=1 method.pretrain_epochs=0; \
	$$place/venv/bin/elite-pl-report outputs/runs >/dev/null; \
	echo 'the wheel runs with its own dependencies'

map: $(READY) ## docs/packages.md, the packages and who imports whom
	$(BIN)/python docs/packages.py

docs: $(READY) ## the documentation as HTML, docs/_build/index.html
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build
	@echo docs/_build/index.html

results: $(READY) ## the tables of benchmarks/results/, from the committed cells
	$(BIN)/python docs/results.py

pins: $(READY) ## resolve requirements.txt anew from pyproject.toml
	{ sed -n '/^#/p' requirements.txt; \
	  $(BIN)/uv pip compile pyproject.toml --quiet --upgrade --extra dev --universal --python-version 3.11 \
	    --no-emit-index-url --no-header --no-annotate; } >requirements.tmp
	mv requirements.tmp requirements.txt

clean: ## remove the environment, caches and outputs/demo; other runs stay
	rm -rf .venv .venv-* build dist docs/_build docs/api docs/results *.egg-info .pytest_cache .ruff_cache .mypy_cache outputs/demo
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
