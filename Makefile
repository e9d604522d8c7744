# make demo    describe a character, get a LoRA and a report (runtime packages only)
# make test    the test suite         make test PYTEST_ARGS="-k shots -x"
# make quick   the unit tests that take no longer than a moment, for the loop of daily work; no browser, no server, no pipeline
# make check   formatting, lint, types
# make gpu     what only a GPU shows: right or wrong, memory, speed; figures in benchmarks/results/gpu/   make gpu GPU_ARGS=--rehearse
# Each makes .venv by itself, and again only when pyproject.toml or constraints.txt changed.
#
# PYTHON=/path/to/python   the interpreter to build .venv with, instead of the first suitable one
# PIP_ARGS="..."           more options for pip install, e.g. where to find another build of torch

SHELL        := /bin/bash
.SHELLFLAGS  := -euo pipefail -c
.DELETE_ON_ERROR:
.DEFAULT_GOAL := help

# 3.11 first: it is the version that constraints.txt was made with.
PYTHON       ?=
PYTHONS      := $(or $(PYTHON),python3.11 python3.12 python3.13 python3.14 python3)
PIP_ARGS     ?=
DEMO_ARGS    ?=
PYTEST_ARGS  ?=
GPU_ARGS     ?=
# How many processes test, of one torch thread each: a second thread beside a busy process is slower, not faster. By default
# three, of which two compute on two cores while others wait (tests/turns.py), and for `quick`, whose tests only compute, two.
TEST_WORKERS ?=

VENV    := .venv
BIN     := $(VENV)/bin
PIP     := $(BIN)/python -m pip --disable-pip-version-check
RUNTIME := $(VENV)/.installed-runtime
DEV     := $(VENV)/.installed-dev
SOURCES := $(wildcard src mini_world tests benchmarks examples)

# Tests never reach a model hub, whatever the machine's network allows.
TEST_ENV := HF_HUB_OFFLINE=1 TRANSFORMERS_OFFLINE=1 HF_HUB_DISABLE_TELEMETRY=1 DO_NOT_TRACK=1 \
            OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} TOKENIZERS_PARALLELISM=false

.PHONY: help demo test quick check gpu format clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

demo: $(RUNTIME)
	$(BIN)/lora-foundry demo $(DEMO_ARGS)

# A Chromium for the tests of the dashboard: an installed one, else Debian's, else Playwright's; without any they skip.
test: $(DEV)
	$(BIN)/python -m tests.browser.chromium
	$(TEST_ENV) $(BIN)/python -m pytest -n $(or $(TEST_WORKERS),3) --dist worksteal $(PYTEST_ARGS)

# What is left out is marked `slow` or stands in another folder than tests/unit; `make test` runs it all.
quick: $(DEV)
	$(TEST_ENV) $(BIN)/python -m pytest -n $(or $(TEST_WORKERS),2) --dist worksteal -m "not slow" tests/unit $(PYTEST_ARGS)

check: $(DEV)
	$(BIN)/ruff format --check $(SOURCES)
	$(BIN)/ruff check $(SOURCES)
	$(BIN)/mypy

gpu: $(DEV)
	$(BIN)/python -m benchmarks.gpu $(GPU_ARGS)

format: $(DEV)
	$(BIN)/ruff format $(SOURCES)
	$(BIN)/ruff check --fix $(SOURCES)

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis

# A .venv that works is kept; a half-made one is made anew.
$(RUNTIME): pyproject.toml constraints.txt
	@if ! $(BIN)/python -m pip --version >/dev/null 2>&1; then \
	    chosen=; \
	    for candidate in $(PYTHONS); do \
	        if "$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1; then \
	            chosen="$$candidate"; break; \
	        fi; \
	    done; \
	    if [ -z "$$chosen" ]; then \
	        echo "lora-foundry needs Python 3.11 or newer with the venv and ensurepip modules; tried: $(PYTHONS)." >&2; \
	        echo "Install one (Debian and Ubuntu: apt install python3 python3-venv) or name it: make PYTHON=/path/to/python3.11" >&2; \
	        exit 1; \
	    fi; \
	    echo "Making $(VENV) with $$("$$chosen" --version)"; \
	    "$$chosen" -m venv --clear $(VENV); \
	fi
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e .
	@touch $@

$(DEV): $(RUNTIME)
	$(PIP) install --quiet $(PIP_ARGS) -c constraints.txt -e '.[dev]'
	@touch $@
