# Everything that people run. `make` alone lists it.
SHELL := /bin/bash
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# What the host itself must have: git to push with, bubblewrap to build in, venv to install into.
PACKAGES := git bubblewrap
PREFIX ?= /opt/gitd
DESTDIR ?=
PLACE = $(abspath $(DESTDIR)$(PREFIX))
# Tests at a time: one more than processors, since many of them wait.
WORKERS ?= $(shell n=$$(nproc); echo $$((n < 8 ? n + 1 : 8)))
# Tests start hundreds of processes, each of which would compile the whole program again.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

.PHONY: packages
packages:
	@missing=""; \
	command -v git >/dev/null || missing="$$missing git"; \
	command -v bwrap >/dev/null || missing="$$missing bubblewrap"; \
	$(PYTHON) -c 'import ensurepip' 2>/dev/null || missing="$$missing python3-venv"; \
	if [ -n "$$missing" ]; then \
	  if [ "$$(id -u)" != 0 ]; then \
	    echo "Install these first: sudo apt-get install$$missing" >&2; exit 1; \
	  fi; \
	  echo "installing$$missing"; \
	  apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends$$missing >/dev/null; \
	fi

$(VENV)/.installed: pyproject.toml
	@$(MAKE) --no-print-directory packages
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "gitd needs Python 3.11 or later: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "installing into $(VENV); the first time it takes a minute or so"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	@touch $@

.PHONY: install
install: packages $(VENV)/.installed ## Install into .venv, with what tests need

.PHONY: check
check: install ## Lint, format and types
	$(BIN)/ruff check --quiet .
	$(BIN)/ruff format --check --quiet .
	$(BIN)/mypy

.PHONY: test
test: install ## All tests, scenarios with the real git and real kills too
	$(BIN)/pytest -n $(WORKERS) --dist worksteal -m 'not soak'

.PHONY: oldest
oldest: ## The quick tests with the oldest libraries that pyproject.toml allows
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/pip install --quiet --disable-pip-version-check uv
	VIRTUAL_ENV=.venv-oldest .venv-oldest/bin/uv pip install --quiet --resolution lowest-direct -e '.[dev]'
	.venv-oldest/bin/pytest -n $(WORKERS) -m 'not soak' tests/gitd --ignore tests/gitd/git

.PHONY: scenarios
scenarios: install ## Only the scenarios
	$(BIN)/pytest tests/scenarios -m 'not soak'

.PHONY: soak
soak: install ## The long proofs: crash sweeps, fuzzing, long races
	$(BIN)/pytest -m soak --timeout 3600

.PHONY: bench
bench: install ## Speed against peers, side by side; prints ratios
	$(BIN)/python -m bench

.PHONY: demo
demo: install ## Push, promote and roll back an example site; CI=1 exits by itself
	@$(BIN)/python examples/demo.py $(if $(CI),--once)

.PHONY: install-service
install-service: ## Install under PREFIX with its systemd units (as root)
	$(PYTHON) -m venv $(PLACE)
	rm -rf build  # pip makes the package in the tree: an earlier one's files would go along
	$(PLACE)/bin/pip install --quiet --disable-pip-version-check --no-compile .
	rm -rf build
	$(PLACE)/bin/python -m compileall -qf -s '$(abspath $(DESTDIR))' -p / $(PLACE)/lib
	# What is installed for elsewhere says nothing of where it was made.
	grep -rIlZ -e '$(PLACE)' $(PLACE)/bin $(PLACE)/pyvenv.cfg | xargs -0r sed -i 's|$(PLACE)|$(PREFIX)|g'
	install -d $(DESTDIR)/etc/systemd/system $(DESTDIR)/etc/sysusers.d $(DESTDIR)/etc/gitd
	for unit in systemd/*.service systemd/*.socket systemd/*.timer; do \
	  sed 's|/opt/gitd|$(PREFIX)|g' $$unit > $(DESTDIR)/etc/systemd/system/$$(basename $$unit); \
	done
	install -m 644 systemd/gitd.sysusers $(DESTDIR)/etc/sysusers.d/gitd.conf
	[ -e $(DESTDIR)/etc/gitd/gitd.toml ] || install -m 644 systemd/gitd.toml $(DESTDIR)/etc/gitd/gitd.toml

.PHONY: clean
clean: ## Remove what was built here
	rm -rf $(VENV) .venv-oldest build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
