# Each target sets up what it needs: a Python from 3.11 on, about 7 GB of disk, and five minutes for the first installation.
SHELL := /bin/bash
# A Python that you name (make PYTHON=/path/to/python), else the first of these that runs; where none does, uv brings one (make PYTHON=uv asks for that).
PYTHON ?=
PYTHONS := python3.11 python3.12 python3.13 python3.14 python3
# An index of CPU builds of torch saves 5 GB: make TORCH_INDEX=... (their hashes are others, so versions alone are held).
TORCH_INDEX ?=
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEEDED_GB := 8
# Tests leave the user's cache alone: theirs lives under outputs/smoke, and is emptied first.
SMOKE := outputs/smoke
TYPES = $(BIN)/basedpyright --pythonpath $(BIN)/python
UV = $(or $(wildcard $(BIN)/uv),uv)

.PHONY: help install reproduce reproduce-all test test-full bench types verify lab publish lock clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

$(BIN)/python:
	@for python in $(or $(PYTHON),$(PYTHONS)); do \
	  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || continue; \
	  echo "using $$("$$python" -V), found as $$python"; exec "$$python" -m venv --clear $(VENV); \
	done; \
	if [ -z "$(filter-out uv,$(PYTHON))" ] && command -v uv >/dev/null; then \
	  echo "using a Python 3.11 of uv's"; exec uv venv --quiet --clear --seed --python 3.11 $(VENV); \
	fi; \
	echo "error: none of $(or $(PYTHON),$(PYTHONS) uv) is a Python from 3.11 on; name one: make PYTHON=/path/to/python3.11"; exit 1

$(INSTALLED): $(BIN)/python pyproject.toml requirements.lock
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); compgen -G '$(VENV)/lib/python3*/site-packages/torch' >/dev/null || [ $$free -ge $(NEEDED_GB) ] || { echo "error: the installation takes $(NEEDED_GB) GB of disk, $$free GB are free here"; exit 1; }
	@echo "installing requirements.lock into $(VENV), $$($(BIN)/python -V): about 7 GB and five minutes, once (pip's log: $(VENV)/pip.log)"
	@{ if [ -z "$(TORCH_INDEX)" ]; then $(BIN)/python -m pip install --require-hashes -r requirements.lock; \
	   else sed -E '/^ +--hash/d; /^(nvidia-|cuda-|triton=)/d; s/ *\\$$//' requirements.lock >$(VENV)/cpu.txt \
	     && $(BIN)/python -m pip install --extra-index-url "$(TORCH_INDEX)" -r $(VENV)/cpu.txt; fi \
	   && $(BIN)/python -m pip install --no-deps --no-build-isolation -e .; } >$(VENV)/pip.log 2>&1 \
	  || { tail -n 5 $(VENV)/pip.log; echo "error: the installation failed; see $(VENV)/pip.log"; exit 1; }
	@touch $@

install: $(INSTALLED) ## nothing but the installation, into .venv

reproduce: $(INSTALLED) ## the main job: poison, clean with fine-tuning, CleanCLIP and PAR, compare (about 20 minutes on 2 cores)
	@$(BIN)/python -m parlib.run params/small/scarce.yaml

reproduce-all: $(INSTALLED) ## every run of params/small: all seeds, triggers and the search; resumable
	@$(BIN)/python -m parlib.run params/small

verify: $(INSTALLED) ## the runs of make reproduce against outputs/reference; fails on a difference
	@$(BIN)/python -m parlib.cli.verify

test: $(INSTALLED) ## ruff, types, then unit tests and the notebooks at smoke scale
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .
	@rm -rf $(SMOKE)
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" OMP_NUM_THREADS=1; $(TYPES) & \
	  $(BIN)/python -m parlib.run params/smoke/functions.yaml --functions && $(BIN)/python -m parlib.run params/smoke/notebooks.yaml --prepare $(SMOKE)/notebooks; \
	  prepared=$$?; wait $$! && [ $$prepared = 0 ] && $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder --nbval-lax --nbval-current-env --nbval-cell-timeout=300 \
	    -m "not full" --durations=12 tests $(SMOKE)/notebooks

test-full: $(INSTALLED) ## the slow tests alone: the paper's own architectures and parameter files, torch.compile, a failing process
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" && $(BIN)/python -m pytest -m full tests

bench: $(INSTALLED) ## how fast the core is on this machine, beside what the released code does (BENCH_FLAGS=--write-figures keeps it)
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" && $(BIN)/python -m pytest tests/benchmarks -s $(BENCH_FLAGS)

types: $(INSTALLED) ## pyright's basic checks of parlib
	@$(TYPES)

lab: $(INSTALLED) ## JupyterLab in this folder, with its token (as root: make lab LAB_FLAGS=--allow-root)
	@[ $$(id -u) != 0 ] || [[ "$(LAB_FLAGS)" == *--allow-root* ]] || { echo "error: JupyterLab does not start as root by itself; allow it: make lab LAB_FLAGS=--allow-root"; exit 1; }
	@$(BIN)/jupyter lab --notebook-dir=. $(LAB_FLAGS)

publish: $(INSTALLED) ## outputs/reference, the notebooks' stored outputs and README's tables, from outputs/small
	@$(BIN)/python -m parlib.cli.publish

lock: ## requirements.lock anew from pyproject.toml; other versions stay (LOCK_FLAGS=--upgrade moves them)
	@command -v $(UV) >/dev/null || { echo "error: uv is not on the PATH; make any other target first, or install it"; exit 1; }
	@$(UV) pip compile pyproject.toml --universal --python-version 3.11 --all-extras --no-strip-extras --generate-hashes --no-annotate \
	  --custom-compile-command "make lock" --quiet --output-file requirements.lock $(LOCK_FLAGS)

clean: ## remove what runs wrote: outputs/small and outputs/smoke (the cache of weights stays)
	@rm -rf outputs/small outputs/smoke
