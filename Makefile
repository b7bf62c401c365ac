# make serve     install, then serve the default model on http://127.0.0.1:8000
#                MODEL=… and PORT=… choose others; ARGS='--flag …' goes to stonechat serve
# make test      install, check, then run the tests; ARGS='-k name' goes to pytest
#                ARGS='-m nightly' runs the cases that are left out; ARGS="-m ''" runs all
# make test-clients
#                install, put the clients of docs/clients.md into CLIENTS (default: build/clients),
#                then run their recipes
# make coverage  install, then run the tests and fail if too few lines and branches are covered
# make check     check lint, formatting, types, the direction of imports and the docs site
# make format    format the code and apply safe lint fixes
# make install   create .venv with all that Stonechat needs to serve, at the tested versions
# make wheel     build the wheel, install it in a fresh environment, and start it there
# make release   VERSION=…: check, then write the version, commit and tag; ARGS=--dry-run writes
#                nothing
# PYTHON=…       the Python to use (3.11 or 3.12)
# VENV=…         the folder of the virtual environment (default: .venv)

VENV ?= .venv
PYTHON ?=
MODEL ?=
PORT ?=
ARGS ?=
VERSION ?=
CLIENTS ?= build/clients
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help install serve check test test-clients coverage format wheel release clean

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)
	@:

$(STAMP): pyproject.toml constraints.txt scripts/install
	@VENV='$(VENV)' PYTHON='$(PYTHON)' scripts/install all
	@touch $@

#: The extra gpu is Triton. The tests run its kernels on the CPU too.
$(DEV_STAMP): pyproject.toml constraints.txt scripts/install
	@VENV='$(VENV)' PYTHON='$(PYTHON)' scripts/install all,dev,docs,gpu
	@touch $(STAMP) $@

serve: $(STAMP)
	@exec $(VENV)/bin/stonechat serve $(if $(MODEL),'$(MODEL)') $(if $(PORT),--port '$(PORT)') $(ARGS)

check: $(DEV_STAMP)
	@VENV='$(VENV)' scripts/check

test: check
	@VENV='$(VENV)' scripts/test $(ARGS)

test-clients: $(DEV_STAMP)
	@$(VENV)/bin/python scripts/clients.py '$(CLIENTS)'
	@STONECHAT_CLIENTS='$(abspath $(CLIENTS))' VENV='$(VENV)' scripts/test -m clients $(ARGS)

coverage: $(DEV_STAMP)
	@VENV='$(VENV)' scripts/coverage $(ARGS)

format: $(DEV_STAMP)
	@VENV='$(VENV)' scripts/format

wheel: $(DEV_STAMP)
	@$(VENV)/bin/python scripts/check_wheel.py $(ARGS)

release: $(DEV_STAMP)
	@VENV='$(VENV)' $(VENV)/bin/python scripts/release.py $(VERSION) $(ARGS)

clean:
	rm -rf $(VENV) .cache .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage dist build site
