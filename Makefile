# make demo | test | mutants | bench | gpu | lint | format | wheel | check-wheel | sanitize |
#      aarch64 | clean
#
# Everything runs in .venv, which is made when it is not there. TORCH is the pip requirement of the
# torch to run with: make test TORCH=torch==2.13.0

PYTHON ?= python3
TORCH ?= torch

VENV := .venv
BIN := $(VENV)/bin
# Without isolation: the build uses the setuptools and the torch of .venv, and asks no index.
PIP_INSTALL := $(BIN)/python -m pip install --no-build-isolation

TORCH_STAMP := $(VENV)/.has-$(shell printf '%s' '$(TORCH)' | tr -c 'A-Za-z0-9.' '_')
DEMO_STAMP := $(VENV)/.has-demo
ALL_STAMP := $(VENV)/.has-all
GPU_STAMPS := $(VENV)/.has-gpu-*

GPU_REPORT ?= gpu-report
SANITIZER ?= $(shell command -v compute-sanitizer 2> /dev/null)
SANITIZED := $(VENV)/sanitized.txt
# Before NumPy is installed torch warns of it, where one sentence is to stand alone.
QUIETLY := -W ignore

# A torch with CUDA is to be measured with CUDA kernels: to build without them must be asked for.
# Expanded in a recipe alone, after torch is installed.
GPU_BUILD = $(or $(FASTCLIP_BUILD),$(shell $(BIN)/python bench/devices.py --build 2> /dev/null),auto)

# Tests in two processes, and each file in one of them: what its tests share is made once. Threads
# that wait sleep: a test may run beside another one's. pytest-benchmark would time nothing.
PYTEST := OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} bin/pytest -n 2 --dist loadfile \
	--no-loadscope-reorder -p no:benchmark

SOURCES := setup.py pyproject.toml README.md LICENSE $(shell find build_support csrc fastclip \
	-type f ! -name '*.py[co]' ! -name '*.so' ! -name _build_info.json)
CXX_SOURCES := $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test mutants bench gpu lint format wheel check-wheel sanitize aarch64 clean

# By the console script: python -m would take the source tree's fastclip, which is not built. Threads
# that wait are to sleep: where other programs keep the cores busy, spinning takes thrice the time.
demo: $(DEMO_STAMP)
	OMP_WAIT_POLICY=$${OMP_WAIT_POLICY:-PASSIVE} $(BIN)/fastclip demo $(DEMO_FLAGS)

# From .venv, not from here: the tests must see the installed package, not the source tree's.
test: $(ALL_STAMP)
	cd $(VENV) && FASTCLIP_REQUIRE_NATIVE=1 $(PYTEST) -c $(CURDIR)/pyproject.toml \
		--rootdir=$(CURDIR) --junit-xml=results.xml $(PYTEST_FLAGS) $(CURDIR)/tests
	$(BIN)/python tests/support/count_backends.py $(VENV)/results.xml
	$(PLANT_FAULTS)

# Faults planted in the CPU, CUDA and Triton sources: each must turn a test red.
mutants: $(ALL_STAMP)
	$(PLANT_FAULTS)

define PLANT_FAULTS
	$(BIN)/python tests/mutants/cpu_run.py
	$(BIN)/python tests/mutants/cuda_run.py
	$(BIN)/python tests/mutants/triton_run.py
endef

bench: $(ALL_STAMP)
	$(BIN)/python bench/run.py $(BENCH_FLAGS)

# On a machine with a GPU: its tests, compute-sanitizer where that is installed, then all times and a
# report of everything in GPU_REPORT. Whether there is a GPU is asked before anything is built. Tests
# that fail do not keep the times from being taken: bench/gpu.py judges, and fails in the end.
gpu: $(TORCH_STAMP)
	@$(BIN)/python $(QUIETLY) bench/devices.py
	rm -f $(VENV)/gpu.xml $(SANITIZED) $(addprefix $(GPU_REPORT)/report.,md png json)
	$(MAKE) $(VENV)/.has-gpu-$(GPU_BUILD)
	-cd $(VENV) && TRITON_INTERPRET=0 bin/python -m pytest -c $(CURDIR)/pyproject.toml \
		--rootdir=$(CURDIR) --junit-xml=gpu.xml -m gpu $(PYTEST_FLAGS) $(CURDIR)/tests/cuda/test_gpu.py
	-$(RUN_SANITIZER)
	TRITON_INTERPRET=0 $(BIN)/python bench/gpu.py $(GPU_FLAGS) --out $(GPU_REPORT) \
		--junit $(VENV)/gpu.xml --sanitizer $(SANITIZED)

# On a machine with a GPU: its tests under each of compute-sanitizer's tools.
sanitize: $(TORCH_STAMP)
	@$(BIN)/python $(QUIETLY) bench/devices.py
	$(MAKE) $(VENV)/.has-gpu-$(GPU_BUILD)
	$(RUN_SANITIZER)

RUN_SANITIZER = $(BIN)/python bench/sanitize.py --sanitizer "$(SANITIZER)" --out $(SANITIZED)

# The CPU kernels for aarch64, run under qemu-user: the same bits as on this machine, or it fails.
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

# In dist/, for the torch of .venv and labelled with it (build_support/label.py).
wheel: $(TORCH_STAMP)
	FASTCLIP_LABEL=1 $(BIN)/python -m pip wheel --no-build-isolation --no-deps --wheel-dir dist .

# In a fresh environment with the same torch: doctor must pass and find what the wheel promises.
check-wheel: wheel
	$(BIN)/python -m build_support.check_wheel \
		"$$(ls -t dist/torch_fastclip-*.whl | head -n 1)"

clean:
	rm -rf $(VENV) build dist *.egg-info

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

# One command for both, so that pip finds a setuptools that suits the build and torch alike.
$(TORCH_STAMP): | $(BIN)/python
	$(BIN)/python -m pip install "$(TORCH)" "setuptools>=77.0.3"
	rm -f $(VENV)/.has-*
	touch $@

# The others may build without CUDA kernels: after them, and in another mode, the GPU's is built anew.
$(DEMO_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[demo]"
	rm -f $(GPU_STAMPS)
	touch $@

$(ALL_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[bench,demo,lint,test]"
	rm -f $(GPU_STAMPS)
	touch $@ $(DEMO_STAMP)

# Without the extra of the tests, whose Triton would be written over the one of a torch for ROCm:
# tests/cuda/test_gpu.py needs pytest and NumPy alone, which the benchmark brings.
$(VENV)/.has-gpu-%: $(TORCH_STAMP) $(SOURCES)
	FASTCLIP_BUILD=$* $(PIP_INSTALL) ".[bench]"
	rm -f $(GPU_STAMPS)
	touch $@
