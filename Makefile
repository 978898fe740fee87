# Each target sets up what it needs: Python 3.11, about 7 GB of disk, and five minutes for the first installation.
SHELL := /bin/bash
PYTHON ?= python3.11
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
NEEDED_GB := 8
# Tests leave the user's cache alone: theirs lives under outputs/smoke, and is emptied first.
SMOKE := outputs/smoke

.PHONY: help reproduce reproduce-all test test-full bench lab publish clean
.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | expand -t 18

$(INSTALLED): pyproject.toml
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not on the PATH; install Python 3.11, or: make PYTHON=/path/to/python3.11"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { echo "error: $(PYTHON) is not Python 3.11; name one: make PYTHON=/path/to/python3.11"; exit 1; }
	@free=$$(df -Pk . | awk 'NR==2 {print int($$4/1048576)}'); [ -d $(VENV)/lib/python3.11/site-packages/torch ] || [ $$free -ge $(NEEDED_GB) ] || { echo "error: the installation takes $(NEEDED_GB) GB of disk, $$free GB are free here"; exit 1; }
	@echo "installing into $(VENV): about 7 GB and five minutes, once (pip's log: $(VENV)/pip.log)"
	@$(PYTHON) -m venv $(VENV)
	@$(BIN)/pip install -e '.[dev]' >$(VENV)/pip.log 2>&1 || { tail -n 5 $(VENV)/pip.log; echo "error: the installation failed; see $(VENV)/pip.log"; exit 1; }
	@touch $@

reproduce: $(INSTALLED) ## the main job: poison, clean with fine-tuning and PAR, compare (about 16 minutes on 2 cores)
	@$(BIN)/python -m parlib.run params/small --only 02_clean/finetune_badnet_stripes_s0 02_clean/par_badnet_stripes_s0 05_evaluate

reproduce-all: $(INSTALLED) ## every run of params/small: all seeds, triggers and the search; resumable
	@$(BIN)/python -m parlib.run params/small

test: $(INSTALLED) ## ruff, then unit tests and the notebooks at smoke scale
	@$(BIN)/ruff check . && $(BIN)/ruff format --check -q .
	@rm -rf $(SMOKE)
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" && $(BIN)/python -m parlib.run params/smoke --prepare $(SMOKE)/notebooks \
	  && $(BIN)/python -m pytest --nbval-lax --nbval-current-env --nbval-cell-timeout=300 -m "not full" tests $(SMOKE)/notebooks

test-full: $(INSTALLED) ## the slow tests alone: the paper's own architectures and parameter files, torch.compile, a failing process
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" && $(BIN)/python -m pytest -m full tests

bench: $(INSTALLED) ## how fast the core is on this machine: steps, loader, evaluation, memory
	@export PAR_CACHE="$(CURDIR)/$(SMOKE)/cache" && $(BIN)/python -m pytest tests/benchmarks --benchmark-columns=mean,stddev,rounds -s

lab: $(INSTALLED) ## JupyterLab in this folder, with its token
	@$(BIN)/jupyter lab --notebook-dir=.

publish: $(INSTALLED) ## outputs/reference, the notebooks' stored outputs and README's tables, from outputs/small
	@$(BIN)/python -m parlib.publish

clean: ## remove what runs wrote: outputs/small and outputs/smoke (the cache of weights stays)
	@rm -rf outputs/small outputs/smoke
