PYTHON ?= python3
KERAS_BACKEND ?= tensorflow
BACKENDS ?= tensorflow jax torch
PYTEST ?= -m "not slow"
# Four devices of JAX. These small tests compile for longer than they run, so
# `make test` has little optimised; `make test-all` has all.
DEVICES := --xla_force_host_platform_device_count=4
XLA_FLAGS ?= $(DEVICES) --xla_backend_optimization_level=0 \
	--xla_llvm_disable_expensive_passes=true

BIN := .venv/bin
PIP := $(BIN)/python -m pip install -q -c constraints.txt

.PHONY: demo test test-all lint format docs clean

# Two installs at once would spoil `.venv`; the tests below run side by side.
ifeq ($(MAKELEVEL), 0)
.NOTPARALLEL:
endif

demo: .venv/demo-$(KERAS_BACKEND)
	KERAS_BACKEND=$(KERAS_BACKEND) $(BIN)/python examples/quickstart.py $(DEMO)

# Installed one after the other, tested side by side: a test process runs on
# one core most of the time.
test: .venv/lint .venv/docs $(BACKENDS:%=.venv/test-%)
	$(MAKE) -j3 lint docs $(BACKENDS:%=test-%)

test-all:
	$(MAKE) test PYTEST= XLA_FLAGS=$(DEVICES)

# Without the tests of the site, which `docs` runs: they know no backend.
test-%: .venv/test-%
	KERAS_BACKEND=$* OMP_WAIT_POLICY=passive XLA_FLAGS="$(XLA_FLAGS)" \
		$(BIN)/python -m pytest --ignore=tests/test_site.py $(PYTEST)

lint: .venv/lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: .venv/docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict
	$(BIN)/python -m pytest --noconftest tests/test_site.py

clean:
	rm -rf .venv runs site build dist *.egg-info

.venv/bin/python:
	$(PYTHON) -m venv .venv

# A stamp for each set of extras, made anew when setup.py asks for more.
.venv/lint: .venv/bin/python setup.py constraints.txt
	$(PIP) -e ".[lint]"
	@touch $@

.venv/demo-%: .venv/bin/python setup.py constraints.txt
	$(PIP) -e ".[examples,$*]"
	@touch $@

.venv/test-%: .venv/bin/python setup.py constraints.txt
	$(PIP) -e ".[test,hub,$*]"
	@touch $@

.venv/docs: .venv/bin/python setup.py constraints.txt
	$(PIP) -e ".[docs]"
	@touch $@
