# `make` lists what there is. Each target makes what it needs first: from a fresh clone, `make test` or
# `make demo` is enough.
#
#   PYTHON        the interpreter that makes the virtual environment
#   VENV          where that is
#   TORCH         the torch to install in it; pip's newest when the environment has none yet
#   PYTEST_ARGS   more arguments for pytest
#   BENCH_ARGS    arguments for the benchmark, such as --quick
#   GPU_ARGS      arguments for the check on a GPU, such as --steps tests,ncu

PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch>=2.6
PYTEST_ARGS ?=
BENCH_ARGS ?=
GPU_ARGS ?=

BIN := $(VENV)/bin
INSTALLED := $(VENV)/.involution-installed
# Whatever the compiled parts are made of: a change to any of them installs again.
BUILT_FROM := pyproject.toml setup.py involution/_version.py $(wildcard tools/*.py) \
              $(shell find csrc -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
CXX_SOURCES := $(shell find benchmarks csrc examples tests -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')

.PHONY: help venv test demo examples docs bench gpu lint format sanitize profile clean

help:  ## list the targets
	@sed -n 's/^\([a-z]*\):.*## \(.*\)/  make \1\t\2/p' $(MAKEFILE_LIST) | expand -t 18

venv: $(INSTALLED)  ## make the virtual environment and install the project in it, editable

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# torch comes first, so that the build finds it instead of fetching another; and it stays, whichever torch the newest
# torchvision asks for.
$(INSTALLED): $(BIN)/python $(BUILT_FROM)
	$(BIN)/python -m pip install "$(TORCH)"
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' >$(VENV)/constraints.txt
	$(BIN)/python -m pip install --editable '.[dev]' --constraint $(VENV)/constraints.txt
	$(BIN)/python -c 'import involution; print(involution.build_info())'
	@touch $@

test: venv  ## run the tests
	$(BIN)/python -m pytest --numprocesses auto --dist loadgroup $(PYTEST_ARGS)

demo: venv  ## run the operator on a photograph, train a small network and evaluate it
	$(BIN)/python examples/demo.py
	$(BIN)/python -m involution.train
	$(BIN)/python -m involution.evaluate

examples: venv  ## train on sequences, volumes, a micrograph, video and road signs
	$(BIN)/python examples/sequence.py
	$(BIN)/python examples/volume.py
	$(BIN)/python -m pip install --no-deps stardist
	$(BIN)/python examples/nuclei.py
	$(BIN)/python examples/surveillance.py
	$(BIN)/python examples/signs.py

docs: venv  ## build the documentation as a site, in site/
	$(BIN)/python -m pip install --quiet --editable '.[docs]' --constraint $(VENV)/constraints.txt
	$(BIN)/python -m mkdocs build --strict

bench: venv  ## measure the operator against copies of memory and baselines
	$(BIN)/python -m benchmarks.operator $(BENCH_ARGS)

gpu: venv  ## check, measure and profile on a GPU in five minutes
	$(BIN)/python -m benchmarks.gpu_check $(GPU_ARGS)

lint: venv  ## check style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $(CXX_SOURCES)
	$(BIN)/mypy

format: venv  ## put the code into the style that lint checks
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

sanitize: venv  ## run the GPU tests under compute-sanitizer
	PYTHON=$(BIN)/python tools/sanitize.sh $(PYTEST_ARGS)

profile: venv  ## record a profile with NVTX ranges
	PYTHON=$(BIN)/python tools/profile.sh

clean:  ## remove what was built; the virtual environment stays
	rm -rf build dist site *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find involution -name '*.so' -delete
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +
	rm -f $(INSTALLED)
