# Two commands do all set-up: `make quickstart` and `make test`.
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Tests share the cores, a file to a process, one process more than cores, since many tests wait; libraries compute on
# one thread in each.
PROCESSES := $(shell echo $$(( $$(getconf _NPROCESSORS_ONLN) < 8 ? $$(getconf _NPROCESSORS_ONLN) + 1 : 8 )))
TESTS := HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(PROCESSES) --dist loadfile --no-loadscope-reorder

.PHONY: quickstart test test-quick test-faults lint docs bench clean
.DEFAULT_GOAL := quickstart

$(STAMP): pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==$(shell sed -n 's/^torch==//p' constraints.txt)"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	touch $@

quickstart: $(STAMP)  ## environment, install, and the main job on the built-in demo
	PATH="$(abspath $(BIN)):$$PATH" bash pipelines/quickstart.sh

test: $(STAMP)  ## linters, types, and every test with coverage
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(TESTS) --cov=alignvl_cli --cov-report=term --cov-fail-under=97

test-quick: $(STAMP)  ## for the hand: no test that is marked slow, no coverage; about two minutes
	$(TESTS) -q -m "not slow"

test-faults: $(STAMP)  ## kills, full disks, corruptions and hostile input, more of each than `make test` tries; prints counts
	ALIGNVL_FAULTS=6 ALIGNVL_COMMAND_LINES=2000 HF_HUB_OFFLINE=1 $(BIN)/python -m pytest -s tests/faults tests/ablation/test_ablation_growth.py

lint: $(STAMP)  ## put formatting and fixable lint right
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/mypy

docs: $(STAMP)  ## the pages as a site in build/site; fails on a dead link
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: $(STAMP)  ## docs/benchmarks.md, from one run of every benchmark; QUICK=--quick for small sizes
	HF_HUB_OFFLINE=1 $(BIN)/python benchmarks/page.py $(QUICK)

clean:
	rm -rf $(VENV) build dist *.egg-info alignvl-workspace
