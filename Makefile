# make demo    the main job, end to end          make test    all fast tests
# make slow    slow tests as well                make lint    formatting, lint, types
# make bench   pytest-benchmark                  make sanitize  native code under sanitizers
# make phases  where a kernel's time goes        make sanitize-ops  the same for what needs torch
# make peers   beside other runtimes
# make clean   remove what these made
# Each sets up what it needs in $(VENV) first, but for
# make gpu-check OUT=folder   builds, tests and times on a GPU with $(PYTHON) as it is, offline

PYTHON ?= python3
VENV ?= .venv
OUT ?= demo-out
# Versions as tested. A machine with an NVIDIA GPU takes the newest torch, with CUDA, instead.
CONSTRAINTS ?= $(if $(shell command -v nvidia-smi),,constraints.txt)

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
PIN := $(addprefix -c ,$(CONSTRAINTS))
NATIVE := $(shell find csrc cmake -type f) CMakeLists.txt setup.py pyproject.toml
READY := $(VENV)/.ready

CMAKE := $(BIN)/cmake -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(BIN)/ninja)
NATIVE_BUILD := $(CMAKE) -S tests/native

.PHONY: setup demo test slow bench lint format sanitize sanitize-ops phases gpu-check peers deepsparse clean

setup: $(READY)

$(VENV)/.tools: pyproject.toml $(CONSTRAINTS)
	@echo "== setting up $(VENV): torch, build tools, test tools"
	$(PYTHON) -m venv $(VENV)
	$(PIP) install -q $(PIN) torch numpy
	$(PIP) install -q $(PIN) "setuptools>=77" cmake ninja pybind11
	@touch $@

# Without isolation the build uses the torch that is here, and does not fetch it twice.
$(READY): $(VENV)/.tools $(NATIVE)
	@echo "== building the native kernels"
	$(PIP) install -q $(PIN) --no-build-isolation -e ".[test]"
	@touch $@

demo: $(READY)
	$(BIN)/python -m sparseprune demo --out $(OUT)

test: $(READY)
	$(BIN)/python -m pytest

slow: $(READY)
	$(BIN)/python -m pytest -m "slow or not slow"

bench: $(READY)
	$(BIN)/python -m pytest benchmarks --benchmark-only

$(VENV)/.lint: $(READY) $(CONSTRAINTS)
	$(PIP) install -q $(PIN) ruff mypy clang-format
	@touch $@

SOURCES := $(shell git ls-files 'csrc/*.h' 'csrc/*.cpp' 'csrc/*.cu' 'csrc/*.cuh' 'csrc/*.inc' 'tests/native/*' 'benchmarks/native/*' | grep -v CMakeLists)

lint: $(VENV)/.lint
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(SOURCES)
	@! grep -rnE '#include *[<"](torch|ATen|c10)/' csrc/formats csrc/kernels || (echo "torch in a torch-free folder"; exit 1)

format: $(VENV)/.lint
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .
	$(BIN)/clang-format -i $(SOURCES)

# Plain first: guard pages find over-reads at full optimisation, which sanitizers change. CUDA kernels
# on the CPU also under the thread sanitizer, which sees a missing barrier.
sanitize: $(READY)
	$(NATIVE_BUILD) -B build/native && $(BIN)/cmake --build build/native
	build/native/test_kernels
	build/native/test_cuda
	$(NATIVE_BUILD) -B build/sanitize -DSPARSEPRUNE_SANITIZE=address,undefined
	$(BIN)/cmake --build build/sanitize
	build/sanitize/test_kernels
	build/sanitize/test_cuda
	$(NATIVE_BUILD) -B build/race -DSPARSEPRUNE_SANITIZE=thread
	$(BIN)/cmake --build build/race --target test_cuda
	build/race/test_cuda

# What torch calls (csrc/ops, csrc/*.cpp) and programs as the library runs them: the extension built
# with sanitizers, beside a copy of the package, under its tests. Needs gcc.
SANITIZED := build/sanitize-ops
SANITIZED_TESTS := $(addprefix tests/test_,$(addsuffix .py,attention bitmask block_ops \
    conv_gradients conv_program convert io_programs linear_ops multiply nm_ops ops sell))

sanitize-ops: $(READY)
	$(CMAKE) -S . -B $(SANITIZED) -DPython_EXECUTABLE=$(abspath $(BIN))/python -DSPARSEPRUNE_CUDA=OFF \
	    -DCMAKE_CXX_FLAGS="-fsanitize=address,undefined -fno-sanitize-recover=undefined"
	$(BIN)/cmake --build $(SANITIZED)
	git ls-files sparseprune tests benchmarks pyproject.toml | tar c -T - | tar x -C $(SANITIZED)
	$(BIN)/cmake --install $(SANITIZED) --prefix $(SANITIZED)
	cd $(SANITIZED) && ASAN_OPTIONS=detect_leaks=0 PYTHONPATH=. \
	    LD_PRELOAD="$$(g++ -print-file-name=libasan.so) $$(g++ -print-file-name=libubsan.so)" \
	    $(abspath $(BIN))/python -m pytest $(SANITIZED_TESTS)

# Where the time goes, per instruction set (docs/kernels.md): one csr tile, and kernels over planes.
phases: $(READY)
	$(NATIVE_BUILD) -B build/native && $(BIN)/cmake --build build/native
	build/native/phases | tee phases.csv
	build/native/planes | tee planes.csv
	build/native/limits | tee limits.csv

# In under 8 minutes: logs, CSV and picture in OUT, a short table last.
gpu-check:
	$(PYTHON) -m benchmarks.gpu.check --out $(if $(filter file,$(origin OUT)),gpu-out,$(OUT))

# sparseprune beside other runtimes (benchmarks/peers), e.g. make peers PEERS="--cases resnet".
PEERS ?=
DEEPSPARSE := build/deepsparse
DEEPSPARSE_PYTHONS ?= python3.11 python3.10 python3.9 python3.8 $(PYTHON)

$(VENV)/.peers: $(READY) $(CONSTRAINTS)
	$(PIP) install -q $(PIN) onnx onnxruntime openvino
	@touch $@

peers: $(VENV)/.peers deepsparse
	$(BIN)/python -m benchmarks.peers $(PEERS)

# DeepSparse has wheels for Python 3.8 to 3.11 and needs an old NumPy; without it the rest goes on.
deepsparse:
	@test -e $(DEEPSPARSE)/.ready || { for python in $(DEEPSPARSE_PYTHONS); do \
	    $$python -c 'import sys, venv, ensurepip; sys.exit(not (3, 8) <= sys.version_info < (3, 12))' \
	        2>/dev/null || continue; \
	    echo "== setting up $(DEEPSPARSE) with $$python"; \
	    $$python -m venv --clear $(DEEPSPARSE) && $(DEEPSPARSE)/bin/python -m pip install -q \
	        --only-binary=deepsparse deepsparse==1.8.0 "numpy<2" && touch $(DEEPSPARSE)/.ready; \
	    break; \
	  done; test -e $(DEEPSPARSE)/.ready || echo "== DeepSparse is left out: no Python 3.8 to" \
	    "3.11 with venv among $(DEEPSPARSE_PYTHONS), or its wheel does not install"; }

clean:
	rm -rf $(VENV) build demo-out peers-out gpu-out sparseprune/*.so *.egg-info
