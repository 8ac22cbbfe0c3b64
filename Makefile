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

GPU_REPORT ?= gpu-report
SANITIZED := $(VENV)/sanitized.txt

SOURCES := setup.py pyproject.toml README.md LICENSE $(shell find build_support csrc fastclip \
	-type f ! -name '*.py[co]' ! -name '*.so' ! -name _build_info.json)
CXX_SOURCES := $(shell find csrc tests bench -name '*.cpp' -o -name '*.h' -o -name '*.c' -o -name '*.cu' -o -name '*.cuh')

.PHONY: demo test mutants bench gpu lint format wheel check-wheel sanitize no-sanitizer aarch64 clean

# By the console script: python -m would take the source tree's fastclip, which is not built.
demo: $(DEMO_STAMP)
	$(BIN)/fastclip demo $(DEMO_FLAGS)

# From .venv, not from here: the tests must see the installed package, not the source tree's.
test: $(ALL_STAMP)
	cd $(VENV) && FASTCLIP_REQUIRE_NATIVE=1 bin/pytest -c ../pyproject.toml --rootdir=.. \
		--junit-xml=results.xml $(PYTEST_FLAGS) ../tests
	$(BIN)/python tests/count_backends.py $(VENV)/results.xml
	$(BIN)/python tests/mutants/run.py
	$(BIN)/python tests/mutants/triton_run.py

# Faults planted in the CPU, CUDA and Triton sources: each must turn a test red.
mutants: $(ALL_STAMP)
	$(BIN)/python tests/mutants/run.py
	$(BIN)/python tests/mutants/kernel_run.py
	$(BIN)/python tests/mutants/triton_run.py

bench: $(ALL_STAMP)
	$(BIN)/python bench/run.py $(BENCH_FLAGS)

# On a machine with a GPU: its tests, compute-sanitizer where that is installed, then all times and a
# report of everything in GPU_REPORT. Whether there is a GPU is asked before anything is built.
gpu: $(TORCH_STAMP)
	@$(BIN)/python bench/devices.py
	$(MAKE) $(ALL_STAMP)
	cd $(VENV) && TRITON_INTERPRET=0 bin/pytest -c ../pyproject.toml --rootdir=.. \
		--junit-xml=gpu.xml -m gpu $(PYTEST_FLAGS) ../tests
	$(MAKE) $(if $(shell command -v compute-sanitizer 2> /dev/null),sanitize,no-sanitizer)
	TRITON_INTERPRET=0 $(BIN)/python bench/gpu.py --out $(GPU_REPORT) --junit $(VENV)/gpu.xml \
		--sanitizer $(SANITIZED) $(GPU_FLAGS)

# On a machine with a GPU: its tests under each of compute-sanitizer's tools. With torch's caching
# allocator it would miss accesses beyond a tensor; a graph's capture works with it alone.
sanitize: $(ALL_STAMP)
	for tool in memcheck racecheck initcheck synccheck; do \
		(cd $(VENV) && TRITON_INTERPRET=0 PYTORCH_NO_CUDA_MEMORY_CACHING=1 compute-sanitizer --tool $$tool \
			--error-exitcode 1 bin/python -m pytest -c ../pyproject.toml --rootdir=.. \
			-m "gpu and not big" ../tests/test_gpu.py) || exit 1; \
	done
	cd $(VENV) && TRITON_INTERPRET=0 compute-sanitizer --error-exitcode 1 bin/python -m pytest -c ../pyproject.toml \
		--rootdir=.. -k "graph or capture" ../tests/test_gpu.py
	echo "memcheck, racecheck, initcheck, synccheck: nothing reported of tests/test_gpu.py" \
		> $(SANITIZED)

no-sanitizer:
	@echo "SKIPPED: compute-sanitizer is not installed" | tee $(SANITIZED)

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

$(DEMO_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[demo]"
	touch $@

$(ALL_STAMP): $(TORCH_STAMP) $(SOURCES)
	$(PIP_INSTALL) ".[bench,demo,lint,test]"
	touch $@ $(DEMO_STAMP)
