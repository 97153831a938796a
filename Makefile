# Everything a person or a pipeline does here has a target; `make` lists them.

PYTHON ?= python3
DATA_DIR ?= data
MODEL ?= gpt-4o
ARGS ?=

VENV := .venv
PY := $(VENV)/bin/python
STAMP_RUN := $(VENV)/.installed-requirements
STAMP_DEV := $(VENV)/.installed-requirements-dev
LOCK := uv pip compile --universal --generate-hashes --no-emit-index-url --no-header --python-version 3.11 --quiet

.DEFAULT_GOAL := help
.PHONY: help setup setup-dev run test check format bench cases replay contract lock clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup: $(STAMP_RUN) ## Create .venv with what running needs

setup-dev: $(STAMP_DEV) ## Create .venv with what testing needs too

run: export TOKEN_MANAGER_DEFAULT_POLICIES_FILE ?= deploy/policies/default.yaml
run: $(STAMP_RUN) ## Run the agent with its own NATS and PostgreSQL (DATA_DIR=data, ARGS=...)
	exec $(PY) -m agent --data-dir "$(DATA_DIR)" $(ARGS)

test: $(STAMP_DEV) ## Run all tests (ARGS="-k name" for some)
	$(PY) -m pytest $(ARGS)

check: $(STAMP_DEV) ## Do what the pipeline does: lint, format, types, contract, tests
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/pyright
	$(PY) -m signals.contract --check
	$(PY) -m pytest $(ARGS)

format: $(STAMP_DEV) ## Repair what ruff can repair
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

bench: $(STAMP_DEV) ## Measure (ARGS=...)
	$(PY) -m bench $(ARGS)

cases: $(STAMP_DEV) ## Run the recorded cases of providers and other tools (ARGS="payloads cost")
	$(PY) -m tests.cases $(ARGS)

replay: $(STAMP_RUN) ## Replay recorded usage: TRACE=file [MODEL=gpt-4o] [ARGS=...]
	@test -n "$(TRACE)" || { echo "say which file: make replay TRACE=file"; exit 2; }
	$(PY) -m bench.replay "$(TRACE)" --model "$(MODEL)" $(ARGS)

contract: $(STAMP_RUN) ## Write the contract documents anew from the declarations
	$(PY) -m signals.contract

lock: ## Resolve the lock files anew (needs uv)
	$(LOCK) pyproject.toml -o requirements.lock
	$(LOCK) pyproject.toml --group dev -o requirements-dev.lock

clean: ## Remove the environment and all caches, not the data
	rm -rf $(VENV) .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# A stamp is the lock that was installed, so a changed lock installs again and an equal one with a new date does not.
# What testing needs includes what running needs.
.PHONY: FORCE
$(STAMP_RUN): FORCE
	@cmp -s requirements.lock $@ || cmp -s requirements-dev.lock $(STAMP_DEV) || \
	  $(MAKE) --no-print-directory install LOCKFILE=requirements.lock INTO=$@

$(STAMP_DEV): FORCE
	@cmp -s requirements-dev.lock $@ || \
	  $(MAKE) --no-print-directory install LOCKFILE=requirements-dev.lock INTO=$@

.PHONY: install
install:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Python 3.11 or later is needed and '$(PYTHON)' is not one; name one: make PYTHON=/path/to/python3.11 ..."; \
	  exit 1; }
	@rm -f $(INTO)
	@if command -v uv >/dev/null 2>&1; then \
	  { test -x $(PY) || uv venv --quiet --python "$$(command -v $(PYTHON))" $(VENV); } && \
	  uv pip install --quiet --python $(PY) --require-hashes -r $(LOCKFILE); \
	else \
	  { test -x $(PY) || $(PYTHON) -m venv $(VENV); } && \
	  $(PY) -m pip install --quiet --disable-pip-version-check --require-hashes -r $(LOCKFILE); \
	fi
	@cp $(LOCKFILE) $(INTO)
