# make run [VIDEOS=folder] [PROFILE=laptop]   raw videos to benchmark report; re-runs only what changed
# make test · make lint · make ui · make audit · make bench NAME=chain
# Nothing else is needed beforehand but Python 3.11 and make.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Stages of dvc.yaml call `dsr`, so the environment's commands come first.
export PATH := $(abspath $(BIN)):$(PATH)

.DEFAULT_GOAL := help
.PHONY: help run test lint ui audit bench install browser clean

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

$(READY): pyproject.toml constraints.txt
	@'$(PYTHON)' -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null || \
	  { echo "make: '$(PYTHON)' is no Python 3.11 or 3.12; install one or run make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@test -x $(BIN)/pip || { echo "creating $(VENV)"; rm -rf $(VENV); $(PYTHON) -m venv $(VENV); }
	@echo "installing the pinned set (a few minutes the first time)"
	@$(BIN)/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

install: $(READY)

run: $(READY)
	@dsr run $(if $(VIDEOS),--videos '$(VIDEOS)') $(if $(PROFILE),--profile '$(PROFILE)')

# Two processes of one thread each; the tests of the whole chain stay together on one of them.
test: $(READY) browser
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) --dist loadgroup $(TESTS)

lint: $(READY)
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/lint-imports

ui: $(READY)
	@dsr ui

audit: $(READY)
	@dsr audit

bench: $(READY)
	@$(BIN)/python -m benchmarks $(or $(NAME),chain)

# The tests of the pages drive a real browser; without one, and without the right to install it, they are skipped.
browser:
	@command -v chromium >/dev/null || { [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null && \
	  { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium >/dev/null; } || \
	  echo "no chromium: the browser tests will be skipped (Debian: apt-get install chromium)"; }

# Raw videos, what DVC keeps, and the history stay; everything that is made from them goes.
clean:
	rm -rf data/videos data/geometry data/candidates data/questions data/splits data/checkpoint reports
