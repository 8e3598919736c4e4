# Every target sets itself up from nothing: a Python 3.10 or newer is enough. `make` alone lists them.
PYTHON ?= python3
VENV ?= .venv
# Processes that run tests.
JOBS ?= $(shell nproc 2>/dev/null || echo 2)
# Where `make gpu` writes its results.
OUT ?= benchmarks/results

BIN := $(VENV)/bin
PY := $(BIN)/python
SETUP := $(VENV)/fastdiff.stamp
WHEEL := dist/fastdiff.stamp
PIP := $(PY) -m pip --disable-pip-version-check install --quiet --constraint constraints.txt

BUILD_FILES := $(wildcard pyproject.toml constraints.txt setup.py CMakeLists.txt) $(shell find csrc -type f 2>/dev/null)
PACKAGE_FILES := $(shell find -L fastdiff tools -type f \( -name '*.py' -o -name '*.json' -o -name '*.safetensors' \)) \
  $(wildcard README.md LICENSE MANIFEST.in)

.PHONY: help demo test sanitize bench docs wheel lint gpu clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

help:
	@echo "make demo   sample handwritten digits with a trained network: digits.png, trajectory.png"
	@echo "make test   all tests"
	@echo "make sanitize  the CPU kernels' tests on a build that stops at bad memory accesses and undefined behaviour"
	@echo "make bench  measured table, JSON and plot"
	@echo "make docs   the documentation as a site, in build/site; fails at a broken link"
	@echo "make wheel  build, check and try out an installable wheel in dist/"
	@echo "make lint   ruff, clang-format, mypy"
	@echo "make gpu    with the current Python, no network: all tests on a GPU, then its benchmarks"
	@echo "make clean  remove what was built; $(VENV) stays"

demo: $(SETUP)
	$(PY) -m fastdiff demo

test: $(SETUP)
	$(PY) -m pytest -n $(JOBS) tests

sanitize: $(SETUP)
	$(PY) tools/sanitize.py

bench: $(SETUP)
	$(PY) -m benchmarks

docs: $(SETUP)
	$(PIP) mkdocs mkdocs-material mkdocstrings mkdocstrings-python
	NO_MKDOCS_2_WARNING=1 $(PY) -m mkdocs build --strict --quiet

lint: $(SETUP)
	@failed=0; \
	for check in 'ruff check' 'ruff format --check' 'python tools/clang_format.py --dry-run -Werror' 'mypy'; do \
	  echo "$$check"; $(BIN)/$$check || failed=1; \
	done; exit $$failed

wheel: $(WHEEL)
	@ls dist/*.whl

# torch and the build's own requirements come first, pinned; then the project is built with them and without isolation,
# so that CMake finds the same pybind11 and Ninja at the same paths when it builds again.
$(SETUP): $(BUILD_FILES)
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10) and f"fastdiff needs Python 3.10 or newer, but $(PYTHON) is {sys.version.split()[0]}; try: make PYTHON=python3.12")'
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear $(VENV)
	@echo "Installing into $(VENV): several minutes the first time"
	$(PIP) torch==2.13.0 setuptools pybind11 cmake ninja
	$(PIP) --no-build-isolation --editable '.[dev]'
	@touch $@

# The wheel is built from the source archive, in a folder of its own: nothing stale gets in, and the archive is proved whole.
$(WHEEL): $(SETUP) $(PACKAGE_FILES)
	rm -rf dist build/wheel
	$(PY) -m build --no-isolation --outdir build/wheel .
	$(PY) tools/repair_wheel.py build/wheel/*.whl dist
	$(PY) tools/check_wheel.py dist/*.whl
	$(PY) -m venv --clear build/wheel/env
	build/wheel/env/bin/python -m pip --disable-pip-version-check install --quiet --constraint constraints.txt torch==2.13.0 dist/*.whl
	cd build/wheel/env && bin/python -I ../../../tools/smoke.py
	mv build/wheel/*.tar.gz dist/
	@touch $@

gpu:
	@$(PYTHON) tools/gpu.py --out $(OUT)

clean:
	rm -rf build dist *.egg-info .benchmarks .mypy_cache .pytest_cache .ruff_cache $(SETUP)
	find fastdiff triton_kernels tests tools benchmarks -name __pycache__ -prune -exec rm -rf {} + 2>/dev/null || true
	rm -f fastdiff/*.so
