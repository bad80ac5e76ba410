# Everything a contributor types. `make` alone lists it.
#
# PYTHON=python3.13 chooses the interpreter of a new virtual environment, VENV=folder its place,
# ARGS="…" is handed to the command that the target ends in. With CI set, nothing is skipped.

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
WORKERS ?= 2

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check --quiet
NODE_TESTS := $(patsubst %/package-lock.json,%,$(wildcard tests/node/package-lock.json))
NODE_PACKAGES := $(addsuffix /node_modules/.package-lock.json,$(NODE_TESTS))
# What a target answers when a tool for some of the tests is not to be had.
WHEN_MISSING := $(if $(CI),exit 1,exit 0)

export PYRIGHT_PYTHON_IGNORE_WARNINGS := 1
# The tests start hundreds of processes, each of which would compile everything anew.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help serve test check docs campaign bench browser faults node clean
.DELETE_ON_ERROR:

help:  ## List the targets
	@sed -n 's/^\([a-z]*\):.*##/make \1\t/p' $(MAKEFILE_LIST) | expand -t 16

serve: $(VENV)/.serve  ## Start the chat service on SQLite (ARGS="--port 9000 …")
	@$(BIN)/perdure serve $(ARGS)

test: check browser faults node  ## Run the checks, then all tests (ARGS="-k name …")
	@$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

check: $(VENV)/.dev  ## Check format, lint, types and floors
	@$(BIN)/python -m ruff format --check --quiet
	@$(BIN)/python -m ruff check --quiet
	@$(BIN)/python -m mypy --no-error-summary
	@$(BIN)/python -m pyright
	@$(BIN)/lint-imports --no-logo

docs: $(VENV)/.dev  ## Build the documentation as a website (SITE_REPOSITORY=https://…/blob/main)
	@$(BIN)/python -m docs.site

campaign: $(VENV)/.dev faults node  ## Run the tests that take minutes
	@$(BIN)/python -m pytest -n $(WORKERS) -m campaign --timeout 1800 \
	  -o faulthandler_timeout=1860 $(ARGS)

bench: $(VENV)/.dev  ## Measure beside the floor and the peers, write docs/performance.md (QUICK=1)
	@$(BIN)/python -m bench $(if $(QUICK),--quick) $(ARGS)

clean:  ## Remove what the other targets made (no database)
	rm -rf $(VENV) dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf tests/node/node_modules
	find src tests -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp beside each set of packages: made anew when pyproject.toml is newer.

$(VENV)/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Perdure needs Python 3.11 or newer: name one with PYTHON=python3.13" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.serve: pyproject.toml $(VENV)/.created
	@echo "Installing the service into $(VENV)"
	@$(PIP) install --editable '.[serve,openai]'
	@touch $@

$(VENV)/.dev: pyproject.toml $(VENV)/.created
	@echo "Installing the service and the tools for its tests into $(VENV)"
	@$(PIP) install --editable '.[dev]'
	@touch $(VENV)/.serve $@

browser:
	@for name in chromium chromium-browser google-chrome; do \
	  command -v $$name >/dev/null && exit 0; done; \
	if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	  echo "Installing Chromium for the browser tests"; \
	  export DEBIAN_FRONTEND=noninteractive; \
	  apt-get update -qq && \
	  apt-get install -qq --no-install-recommends chromium fonts-liberation >/dev/null && \
	  command -v chromium >/dev/null && exit 0; \
	fi; \
	echo "No Chromium: the browser tests cannot run" >&2; $(WHEN_MISSING)

faults:
	@for name in strace pgbouncer; do \
	  { command -v $$name || test -x /usr/sbin/$$name; } >/dev/null && continue; \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "Installing $$name for the tests of faults"; \
	    DEBIAN_FRONTEND=noninteractive; export DEBIAN_FRONTEND; \
	    { apt-get update -qq && \
	    apt-get install -qq --no-install-recommends $$name >/dev/null; } || true; \
	  fi; \
	done

node: $(NODE_PACKAGES)

%/node_modules/.package-lock.json: %/package-lock.json
	@echo "Installing the packages of $*"; \
	{ cd $* && npm ci --no-audit --no-fund --loglevel=error >/dev/null && \
	  touch node_modules/.package-lock.json; } || { \
	echo "No Node packages: the tests that need them cannot run" >&2; $(WHEN_MISSING); }
