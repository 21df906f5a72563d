PYTHON ?= python3
# The engine of the serving environment: cpu, openvino, or gpu on a host with an NVIDIA driver.
ENGINE ?= cpu
DEV := .venv
SERVE := .venv-serve-$(ENGINE)
RIVALS := $(patsubst %,build/rivals/%/.installed,litserve fastapi litert)
# Tests and measurements start servers in this environment, which has the packages of the image.
export DEEPLAB_SERVE_PYTHON := $(CURDIR)/$(SERVE)/bin/python

.PHONY: help demo serve image test-fast test check format lock tables bench bench-client bench-train soak attack check-arm64 export-matrix clean

help: ## list what make can do (the default)
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## /{printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo '  ENGINE=cpu, openvino or gpu chooses the engine of the service: make serve ENGINE=openvino'

demo: $(SERVE)/.installed ## segment the sample photos through the service, then stop it
	$(SERVE)/bin/python -m service.demo

serve: $(SERVE)/.installed ## run the service on port 8000
	$(SERVE)/bin/python -m service

image: ## build the service's container image
	docker build -f docker/serve.Dockerfile --target $(ENGINE) -t deeplab:$(ENGINE) .

# Only the plugins that these tests use are loaded: the others take each process two seconds.
# PYTHONDONTWRITEBYTECODE, which containers often set, is emptied: without compiled files the
# tests take three more seconds to start.
test-fast: $(DEV)/.installed $(SERVE)/.installed ## run the quick tests, about a minute, while working
	PYTEST_DISABLE_PLUGIN_AUTOLOAD=1 PYTHONDONTWRITEBYTECODE= $(DEV)/bin/python -m pytest -p xdist.plugin -p pytest_timeout \
		-n 2 --dist loadfile --max-worker-restart 0 -m "not slow"

# A process that crashes ends the run; otherwise pytest-xdist would wait for its tests for ever.
# Coverage costs a third to a half more CPU time; COVERAGE=off runs the tests alone.
test: $(DEV)/.installed $(SERVE)/.installed ## run all tests and report branch coverage
ifeq ($(COVERAGE),off)
	$(DEV)/bin/python -m pytest -n 2 --dist loadfile --max-worker-restart 0
else
	$(DEV)/bin/coverage erase
	$(DEV)/bin/coverage run -m pytest -n 2 --dist loadfile --max-worker-restart 0
	$(DEV)/bin/coverage combine --quiet
	$(DEV)/bin/coverage report
endif

check: $(DEV)/.installed ## check formatting, lint and types
	$(DEV)/bin/ruff format --check .
	$(DEV)/bin/ruff check .
	$(DEV)/bin/mypy

lock: $(DEV)/.installed ## renew the lock files after a change of pyproject.toml
	PATH="$(CURDIR)/$(DEV)/bin:$$PATH" docker/lock.sh

format: $(DEV)/.installed ## format the code and apply the linter's fixes
	$(DEV)/bin/ruff format .
	$(DEV)/bin/ruff check --fix .

tables: $(DEV)/.installed ## write docs/complexity.md and docs/network.svg from the code
	$(DEV)/bin/python -m model.paper.tables
	$(DEV)/bin/python -m model.paper.diagram

bench: $(DEV)/.installed $(SERVE)/.installed $(RIVALS) ## compare the bundled model and its service with PyTorch and rivals
	$(DEV)/bin/python -m export.bench $(if $(filter openvino,$(ENGINE)),--device openvino)

bench-client: $(DEV)/.installed $(SERVE)/.installed ## measure the batch client's speed and memory
	$(DEV)/bin/python -m service.bench.client

soak: $(DEV)/.installed $(SERVE)/.installed ## send 10,000 requests, hostile ones too (MINUTES=N: for N minutes)
	$(DEV)/bin/python -m service.bench.soak $(if $(MINUTES),--minutes $(MINUTES))

attack: $(DEV)/.installed $(SERVE)/.installed ## attack a service, and measure what ordinary clients see
	$(DEV)/bin/python -m service.bench.attack

ARM64_BASE ?= docker.io/library/python:3.11-slim-bookworm
check-arm64: $(DEV)/.installed $(SERVE)/.installed ## build the cpu image for arm64, and compare its answers with this host's (docker/README.md)
	DEEPLAB_ARM64_BASE=$(ARM64_BASE) $(DEV)/bin/python -m pytest tests/docker/test_arm64_image.py -v -s

bench-train: $(DEV)/.installed ## compare training speed with two other loops (VARIANTS=1: with options of our own)
	$(DEV)/bin/python -m model.bench $(if $(VARIANTS),--variants)

export-matrix: $(DEV)/.installed ## export every inference strategy of the paper's tables 3 and 5
	$(DEV)/bin/python -m export.matrix

# Install locked versions on the platform where the locks were tested; elsewhere install what
# pyproject.toml allows.
# Call: $(call install,ENVIRONMENT,LOCK,EXTRA)
PIP_OPTIONS := --quiet --disable-pip-version-check
ifeq ($(shell uname -sm),Linux x86_64)
install = $(1)/bin/pip install $(PIP_OPTIONS) --require-hashes --only-binary :all: --requirement $(2)
else
install = $(1)/bin/pip install $(PIP_OPTIONS) '.[$(3)]'
endif

# As in the image, commands run from the checkout and the package itself is not installed.
$(SERVE)/.installed: docker/requirements-$(ENGINE).txt
	$(PYTHON) -m venv $(SERVE)
	$(call install,$(SERVE),$<,$(ENGINE))
	touch $@

$(DEV)/.installed: requirements-dev.txt pyproject.toml
	$(PYTHON) -m venv $(DEV)
	$(call install,$(DEV),$<,dev)
	$(DEV)/bin/pip install $(PIP_OPTIONS) --no-deps --no-build-isolation --editable .
	touch $@

build/rivals/%/.installed: service/bench/rivals/%.txt
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/pip install $(PIP_OPTIONS) --require-hashes --only-binary :all: --requirement $<
	touch $@

clean: ## remove the environments and caches
	rm -rf .venv .venv-serve-* build *.egg-info .mypy_cache .ruff_cache .pytest_cache
