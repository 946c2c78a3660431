# `make demo` runs the main job on bundled real data, `make test` passes the tests, `make lint` checks style and types.
# `make native` builds the native kernels into the checkout, incrementally; `make sanitize` runs their C++ tests under
# the sanitizers. Each creates .venv in the checkout root when it is missing or older than pyproject.toml.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# The CPU build of torch is small; elsewhere `make TORCH=torch` takes the registry's default build.
TORCH ?= torch==2.13.0

# Two builds at once would write the same files.
LOCKED := $(if $(shell command -v flock),flock build/.lock)
PLAINEST := $(if $(filter aarch64 arm64,$(shell uname -m)),neon,baseline)

.PHONY: demo test lint format install native sanitize clean

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "$(TORCH)"
	$(BIN)/python -m pip install --quiet --editable ".[test,lint,native]" -C wheel.cmake=false -C wheel.py-api=py3
	touch $@

install: $(VENV)/.installed

# An existing environment is taken as it is, so that this is quick and safe while tests run.
native: $(if $(wildcard $(VENV)/.installed),,install)
	@mkdir -p build && $(LOCKED) sh -ec '\
	  test -f build/dev/build.ninja || $(BIN)/cmake -S . -B build/dev -G Ninja -D CMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja \
	    -D Python_EXECUTABLE=$(abspath $(BIN))/python -D CMAKE_BUILD_TYPE=Release -D OSTINATO_TESTS=ON; \
	  $(BIN)/cmake --build build/dev; \
	  for module in build/dev/_native*.so; do \
	    cmp -s $$module src/ostinato/$$(basename $$module) && continue; \
	    cp $$module src/ostinato/.new.so; mv -f src/ostinato/.new.so src/ostinato/$$(basename $$module); \
	  done'

# The C++ tests under the address, undefined-behaviour and thread sanitizers. TESTS=pool runs those with "pool" in their
# names; ISAS=avx512 compiles that set only (instrumented code compiles slowly). Threads meet the same way on every
# instruction set, so the thread sanitizer is given one.
SANITIZE = $(BIN)/cmake -S . -B build/$(1) -G Ninja -D CMAKE_BUILD_TYPE=Release \
  -D CMAKE_MAKE_PROGRAM=$(abspath $(BIN))/ninja -D OSTINATO_SANITIZE=$(2) $(3); $(BIN)/cmake --build build/$(1)
sanitize: $(if $(wildcard $(VENV)/.installed),,install)
	@mkdir -p build
	$(if $(LOCKED),$(LOCKED)-sanitize) sh -ec '$(call SANITIZE,address,address,-D OSTINATO_ISAS="$(ISAS)")'
	build/address/ostinato_tests $(TESTS)
	$(if $(LOCKED),$(LOCKED)-sanitize) sh -ec '$(call SANITIZE,thread,thread,-D OSTINATO_ISAS=$(PLAINEST))'
	build/thread/ostinato_tests $(TESTS)

# Without a compiler the demo runs on PyTorch's layers.
demo: install
	-@$(MAKE) --no-print-directory native
	$(BIN)/ostinato demo forecast

test: install native
	$(BIN)/python -m pytest -n 2 --dist worksteal -q

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: install
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) build dist src/ostinato/*.so .pytest_cache .mypy_cache .ruff_cache
