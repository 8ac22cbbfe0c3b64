# make demo | test | mutants | bench | gpu | lint | format | wheel | check-wheel | sanitize |
#      aarch64 | clean
#
# Everything runs in .venv, which is made if it does not exist. TORCH is the pip requirement of the
# torch to run with: make test TORCH=torch==2.13.0

PYTHON ?= python3
TORCH ?= torch

VENV := .venv
BIN := $(VENV)/bin
# The build is not isolated: it uses the setuptools and the torch of .venv, and asks no index.
PIP_INSTALL := $(BIN)/python -m pip install --no-build-isolation

TORCH_STAMP := $(VENV)/.has-$(shell printf '%s' '$(TORCH)' | tr -c 'A-Za-z0-9.' '_')
DEMO_STAMP := $(VENV)/.has-demo
ALL_STAMP := $(VENV)/.has-all
GPU_STAMPS := $(VENV)/.has-gpu-*

GPU_REPORT ?= gpu-report
SANITIZER ?= $(shell command -v compute-sanitizer 2> /dev/null)
SANITIZED := $(VENV)/sanitized.txt
# torch warns when NumPy is missing; silence it so that only our message is printed.
QUIETLY := -W ignore

# A torch with CUDA must be measured with CUDA kernels, unless FASTCLIP_BUILD asks for a build
# without them. This may be expanded only in a recipe, after torch is installed.
GPU_BUILD = $(or $(FASTCLIP_BUILD),$(shell $(BIN)/python bench devices --build 2> /dev/null),auto)

# Tests run in two processes, all tests of a file in the same one, so that what they share is made
# once. Waiting threads sleep, because two tests run at the same time. pytest-benchmark is off: it
# would time nothing.
PYTEST := OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} bin/pytest -n 2 --dist loadfile \
	--no-loadscope-reorder -p no:benchmark

SOURCES := setup.py pyproject.toml README.md LICENSE $(shell find build_support csrc fastclip \
	-type f ! -name '*.py[co]' ! -name '*.so' ! -name _build_info.json)
CXX_SOURCES := $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test mutants bench gpu lint format wheel check-wheel sanitize aarch64 clean

# This uses the console script: python -m would take the source tree's fastclip, which is not built.
# Waiting threads sleep: if other programs keep the cores busy, spinning takes three times as long.
demo: $(DEMO_STAMP)
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(BIN)/fastclip demo $(DEMO_FLAGS)

# Tests start in .venv, so that they import the installed package and not the source tree's.
test: $(ALL_STAMP)
	cd $(VENV) && FASTCLIP_REQUIRE_NATIVE=1 $(PYTEST) -c $(CURDIR)/pyproject.toml \
		--rootdir=$(CURDIR) --junit-xml=results.xml $(PYTEST_FLAGS) $(CURDIR)/tests
	$(BIN)/python tests/support/count_backends.py $(VENV)/results.xml
	$(PLANT_FAULTS)

# Plants faults in the CPU, CUDA and Triton sources: each must turn a test red.
mutants: $(ALL_STAMP)
	$(PLANT_FAULTS)

define PLANT_FAULTS
	$(BIN)/python tests/mutants/cpu_run.py
	$(BIN)/python tests/mutants/cuda_run.py
	$(BIN)/python tests/mutants/triton_run.py
endef

bench: $(ALL_STAMP)
	$(BIN)/python bench cpu $(BENCH_FLAGS)

# On a machine with a GPU this runs its tests, compute-sanitizer if that is installed, and all
# measurements, and writes a report of everything to GPU_REPORT. It looks for a GPU before it
# builds. It measures even if tests fail; `bench gpu` judges everything, and fails in the end.
gpu: $(TORCH_STAMP)
	@$(BIN)/python $(QUIETLY) bench devices
	rm -f $(VENV)/gpu.xml $(SANITIZED) $(addprefix $(GPU_REPORT)/report.,md png json)
	$(MAKE) $(VENV)/.has-gpu-$(GPU_BUILD)
	-cd $(VENV) && TRITON_INTERPRET=0 bin/python -m pytest -c $(CURDIR)/pyproject.toml \
		--rootdir=$(CURDIR) --junit-xml=gpu.xml -m gpu $(PYTEST_FLAGS) $(CURDIR)/tests/cuda/test_gpu.py
	-$(RUN_SANITIZER)
	TRITON_INTERPRET=0 $(BIN)/python bench gpu $(GPU_FLAGS) --out $(GPU_REPORT) \
		--junit $(VENV)/gpu.xml --sanitizer $(SANITIZED)

# On a machine with a GPU this runs its tests under each of compute-sanitizer's tools.
sanitize: $(TORCH_STAMP)
	@$(BIN)/python $(QUIETLY) bench devices
	$(MAKE) $(VENV)/.has-gpu-$(GPU_BUILD)
	$(RUN_SANITIZER)

RUN_SANITIZER = $(BIN)/python bench sanitize --sanitizer "$(SANITIZER)" --out $(SANITIZED)

# Runs the CPU kernels for aarch64 under qemu-user; fails unless their bits are this machine's.
aarch64:
	tests/kernel_bits/run.sh aarch64

lint: $(ALL_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CXX_SOURCES)
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(ALL_STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CXX_SOURCES)

# Builds a wheel in dist/, for the torch of .venv and labelled with it (build_support/label.py).
wheel: $(TORCH_STAMP)
	FASTCLIP_LABEL=1 $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# Installs the wheel in a fresh environment with the same torch, where doctor must pass.
check-wheel: wheel
	$(BIN)/python -m build_support.check_wheel \
		"$$(ls -t dist/torch_fastclip-*.whl | head -n 1)"

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One command installs both, so that pip finds a setuptools that suits the build and torch.
$(TORCH_STAMP): | $(BIN)/python
	$(BIN)/python -m pip install "$(TORCH)" "setuptools>=77.0.3"
	rm -f $(VENV)/.has-*
	touch $@

# This and the next may build without CUDA kernels: builds for the GPU are made again after them.
$(DEMO_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[demo]"
	rm -f $(GPU_STAMPS)
	touch $@

$(ALL_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[bench,demo,lint,test,trainers]"
	rm -f $(GPU_STAMPS)
	touch $@ $(DEMO_STAMP)

# The extra "test" is left out: its Triton would overwrite the one of a torch for ROCm.
# tests/cuda/test_gpu.py needs only pytest and NumPy, which the extra "bench" brings.
$(VENV)/.has-gpu-%: $(TORCH_STAMP) $(SOURCES)
	FASTCLIP_BUILD=$* $(PIP_INSTALL) ".[bench]"
	rm -f $(GPU_STAMPS)
	touch $@
