# Everything that is done with this project, by name. `make` alone lists it.
#
# PYTHON=/path/to/python chooses the interpreter, OLDEST_PYTHON=/path/to/python3.10 the one for the second test run.

PYTHON ?= $(shell scripts/find_python.sh 3.13 3.12 3.11 3.14 3.10)
OLDEST_PYTHON ?= $(shell scripts/find_python.sh 3.10 2>/dev/null)
# One more than the cores that CI has: many tests wait for a limit to pass, or for the daemon to start.
TEST_PROCESSES ?= 3

VENV := .venv
OLDEST_VENV := .venv-oldest
REAL_SERVER := .cache/real-server
IN_VENV := $(VENV)/bin/python
WHEEL_PLATFORM := manylinux_2_17_x86_64
PIP := -m pip --disable-pip-version-check --no-input install --quiet
RUN_TESTS := $(IN_VENV) -m scripts.run_tests --processes $(TEST_PROCESSES)

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

.PHONY: help
help: ## List what there is
	@echo "streaming-daemon: make TARGET, with one of"
	@echo
	@sed -nE 's/^([a-z-]+):.*## (.*)$$/  \1|\2/p' $(MAKEFILE_LIST) | awk -F'|' '{ printf "%-16s %s\n", $$1, $$2 }'
	@echo
	@echo "A first look: make run"

.PHONY: run
run: $(VENV)/.run ## Install, start the daemon, show one stream, stay until Ctrl-C
	@exec $(IN_VENV) -m scripts.run_demo

.PHONY: demo-apache
demo-apache: packages $(VENV)/.run ## The same behind Apache: a private one with PHP, the module and the example page
	@exec $(IN_VENV) -m scripts.demo_apache

.PHONY: test
test: packages $(VENV)/.test $(REAL_SERVER)/.installed oldest-environment plane ## Run every test (packages and environments included)
	@exec $(RUN_TESTS) --oldest-python "$$(cat .cache/oldest-python)"

.PHONY: test-fast
test-fast: $(VENV)/.test plane ## Run the tests that share the machine, on the default Python only
	@exec $(RUN_TESTS) fast

.PHONY: check
check: $(VENV)/.check ## Lint, format, types (mypy and pyright) and import contracts
	@echo "==> ruff" && $(VENV)/bin/ruff check && $(VENV)/bin/ruff format --check
	@echo "==> mypy" && $(VENV)/bin/mypy
	@echo "==> pyright" && $(VENV)/bin/pyright
	@echo "==> import contracts" && $(VENV)/bin/lint-imports

.PHONY: format
format: $(VENV)/.check ## Format and repair what ruff can repair
	@$(VENV)/bin/ruff check --fix && $(VENV)/bin/ruff format

.PHONY: sanitize
sanitize: $(VENV)/.test ## Run the plane's tests interpreted, then with bounds checks
	@exec $(RUN_TESTS) interpreted bounds

SEEDS ?= 5000
.PHONY: simulate
simulate: $(VENV)/.test plane ## Run SEEDS=5000 seeds of the simulation; when so many have passed, record it for later runs
	@exec $(IN_VENV) -m tests.simulation.proved --seeds $(SEEDS) --processes $(TEST_PROCESSES)

.PHONY: coverage
coverage: $(VENV)/.test ## Branch coverage of the plane, from an interpreted run
	@mkdir -p .cache
	@NUMBA_DISABLE_JIT=1 $(IN_VENV) -m coverage run -m pytest -q -m "plane and not simulation"
	@$(IN_VENV) -m coverage report

.PHONY: bench
bench: $(VENV)/.test plane ## Start a daemon and measure it under load
	@exec $(IN_VENV) -m scripts.bench

.PHONY: check-kernel
check-kernel: $(VENV)/.run ## Say what this kernel offers, and which of io_uring and epoll will be used
	@exec $(IN_VENV) -m daemon --check-kernel

.PHONY: debug
debug: $(VENV)/.run plane ## Run the daemon in the foreground, in development mode, with all it has to say
	@mkdir -p run
	@exec $(IN_VENV) -X dev -m daemon --socket run/streaming-daemon.sock --metrics 127.0.0.1:9090 \
		--log-level debug --log-format text

.PHONY: docs
docs: $(VENV)/.run ## Write again what is generated from the code: docs/settings.md and the example file
	@exec $(IN_VENV) -m scripts.generate_reference

.PHONY: plane
plane: $(VENV)/.run ## Build the data plane's machine code, where it is missing or stale
	@echo "==> Building the data plane"
	@$(IN_VENV) -m compiler plane

.PHONY: wheel
wheel: $(VENV)/.run ## Build a wheel in dist/, with machine code for every x86-64 processor
	@$(IN_VENV) -m compiler plane mel --levels all
	@if $(IN_VENV) -c 'import numba_cuda' 2>/dev/null; then $(IN_VENV) -m compiler ptx; \
	else echo "  CUDA kernels are left out: numba-cuda is not installed (pip install '.[build,gpu-build]')"; fi
	@rm -rf build/lib build/bdist.* && $(IN_VENV) -m pip --disable-pip-version-check wheel --quiet --no-deps \
		--wheel-dir dist --config-settings=--build-option=--plat-name=$(WHEEL_PLATFORM) . && ls dist/*.whl

# What the images install, by hash: for every platform, and from the oldest Python that an image has.
LOCK := .cache/tools/bin/uv pip compile --quiet --universal --python-version 3.12 --generate-hashes --no-annotate \
	--custom-compile-command "make lock" pyproject.toml
# What builds the wheels, and the CUDA of the image for GPUs: kernels that a newer one compiled need a newer driver.
BUILD := setuptools
CUDA := cuda-toolkit==13.0.*
.PHONY: lock
lock: .cache/tools/.installed ## Choose anew what the images install: deploy/docker/*.lock
	@echo "==> Locking what the images install"
	@$(LOCK) --output-file deploy/docker/image.lock
	@echo "$(CUDA)" | $(LOCK) - --output-file deploy/docker/image-cuda.lock --extra mel --extra gpu
	@echo "$(BUILD)" | $(LOCK) - --output-file deploy/docker/build.lock --extra build
	@printf '%s\n' "$(BUILD)" "$(CUDA)" | $(LOCK) - --output-file deploy/docker/build-cuda.lock \
		--extra build --extra gpu-build

.PHONY: sbom
sbom: .cache/tools/.installed ## Write what an image holds to dist/, as CycloneDX
	@echo "==> Listing what an image installs"
	@$(IN_VENV) -m venv --clear .cache/image && \
	.cache/image/bin/python $(PIP) --require-hashes --requirement deploy/docker/image.lock
	@mkdir -p dist && version=$$($(IN_VENV) -c 'import config; print(config.VERSION)') && \
	sed "s/^dynamic = .*/version = \"$$version\"/" pyproject.toml > .cache/image/pyproject.toml && \
	.cache/tools/bin/cyclonedx-py environment .cache/image --pyproject .cache/image/pyproject.toml \
		--output-reproducible --output-file "dist/streaming-daemon-$$version.cdx.json" && ls dist/*.cdx.json

.PHONY: packages
packages:
	@scripts/install_debian_packages.sh

.PHONY: clean
clean: ## Remove what was built, cached and installed here
	rm -rf $(VENV) $(OLDEST_VENV) .cache .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache
	rm -rf build dist *.egg-info run daemon/built backends/mel/built
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# ---- environments: each stamp says which extras are in, and is older than pyproject.toml when they must be looked at again

$(IN_VENV):
	@python="$(PYTHON)"; test -n "$$python" || { echo "Python 3.10 or newer is needed: make PYTHON=/path/to/python" >&2; exit 1; }; \
	echo "==> Creating $(VENV) with $$("$$python" --version)"; "$$python" -m venv --clear $(VENV)

$(VENV)/.run: pyproject.toml | $(IN_VENV)
	@echo "==> Installing streaming-daemon into $(VENV)"
	@$(IN_VENV) $(PIP) --editable '.[build]' && touch $@

$(VENV)/.test: pyproject.toml | $(VENV)/.run
	@echo "==> Installing what the tests need"
	@$(IN_VENV) $(PIP) --editable '.[build,test,mel,plot,transcribe,mel-check]' && touch $@

$(VENV)/.check: pyproject.toml | $(VENV)/.run
	@echo "==> Installing what the checks need"
	@$(IN_VENV) $(PIP) --editable '.[build,test,mel,plot,transcribe,mel-check,check]' && touch $@

# Tools for releases, in an environment of their own.
.cache/tools/.installed: Makefile | $(IN_VENV)
	@echo "==> Installing uv and cyclonedx-py into .cache/tools"
	@$(IN_VENV) -m venv --clear .cache/tools && .cache/tools/bin/python $(PIP) uv==0.13.9 cyclonedx-bom==7.5.0 && touch $@

# A real OpenAI-compatible server, in an environment of its own: the daemon's must hold nothing of it.
.PHONY: real-server
real-server: $(REAL_SERVER)/.installed

$(REAL_SERVER)/.installed: tests/real_server/requirements.txt | $(IN_VENV)
	@echo "==> Installing a real server to relay from into $(REAL_SERVER)"
	@$(IN_VENV) -m venv --clear $(REAL_SERVER) && $(REAL_SERVER)/bin/python $(PIP) --requirement $< && touch $@

# Leaves the second interpreter's path in .cache/oldest-python, or nothing where there is no second one to test on.
.PHONY: oldest-environment
oldest-environment: | $(IN_VENV)
	@mkdir -p .cache; : > .cache/oldest-python
	@oldest="$(OLDEST_PYTHON)"; version='import sys; print(*sys.version_info[:2])'; \
	if [ -n "$$oldest" ] && [ "$$("$$oldest" -c "$$version")" != "$$($(IN_VENV) -c "$$version")" ]; then \
		[ -x $(OLDEST_VENV)/bin/python ] || "$$oldest" -m venv --clear $(OLDEST_VENV) || exit 1; \
		$(MAKE) $(OLDEST_VENV)/.test && echo "$(OLDEST_VENV)/bin/python" > .cache/oldest-python; \
	fi

$(OLDEST_VENV)/.test: pyproject.toml
	@echo "==> Installing into $(OLDEST_VENV) ($$($(OLDEST_VENV)/bin/python --version))"
	@$(OLDEST_VENV)/bin/python $(PIP) --editable '.[build,test,mel,plot]' && touch $@
