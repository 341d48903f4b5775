# make up | test | down. Nothing else is needed on a machine with Python 3.11 or newer.
PYTHON ?= python3
REQUIRE ?=
WORKERS ?= 2
# Of thousands of tests that start real programs one may lose a race now and then: each such is listed as RERUN, with its failure.
ONCE_MORE ?= --reruns 1 --max-suite-reruns 3 --rerun-show-tracebacks
HOME_FOLDER := $(CURDIR)/.cellwork
BIN := .venv/bin
export CELLWORK_HOME ?= $(HOME_FOLDER)

.PHONY: up down test check format soak torch bench docs clean

up: .venv/installed
	@$(BIN)/cellwork up --demo

down:
	@if [ -x $(BIN)/cellwork ]; then $(BIN)/cellwork down; else echo "nothing is installed here, so nothing runs"; fi

test: .venv/installed-dev
	@env -u CELLWORK_HOME REQUIRE=$(REQUIRE) $(BIN)/python -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "not soak and not torch" $(ONCE_MORE)

soak: .venv/installed-dev
	@env -u CELLWORK_HOME REQUIRE=$(REQUIRE) $(BIN)/python -m pytest -m soak --timeout 7200 -rP

torch: .venv/installed-dev
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[torch]'
	@env -u CELLWORK_HOME $(BIN)/python -m pytest -m torch tests/lib/test_catalogue.py tests/lib/test_parallel.py

check: .venv/installed-dev
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: .venv/installed-dev
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format .

bench: .venv/installed-dev
	@for subject in bench/*.py; do echo "== $$subject"; $(BIN)/python $$subject || exit 1; done

docs: .venv/installed-dev
	@$(BIN)/python nbs/ui/build.py && $(BIN)/python nbs/reference/build.py

clean: down
	rm -rf .venv .cellwork

# The stamps: a virtual environment with the tested versions, bytecode compiled (it halves every start).
.venv/bin/uv: constraints.txt
	@command -v $(PYTHON) >/dev/null || { echo "cellwork: there is no $(PYTHON) on the PATH; install Python 3.11 or newer, or run: make up PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(None if v >= (3, 11) else f"cellwork: Python {v.major}.{v.minor} is too old, 3.11 or newer is needed; run: make up PYTHON=/path/to/python3.11")'
	@echo "making .venv with $$($(PYTHON) --version)"
	@.venv/bin/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt uv
	@touch $@

SHARED := $(shell find extensions/cellwork_jupyter/lab extensions/*.json hub/voila_template -type f 2>/dev/null)
.venv/installed: .venv/bin/uv pyproject.toml constraints.txt $(SHARED)
	@echo "installing the tested versions (constraints.txt), with bytecode"
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[all]'
	@touch $@

.venv/installed-dev: .venv/installed
	@$(BIN)/uv pip install --quiet --python $(BIN)/python --compile-bytecode -c constraints.txt -e '.[all,dev]'
	@touch $@
