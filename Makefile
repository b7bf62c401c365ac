# make serve     install, then serve the default model on http://127.0.0.1:8000
#                MODEL=… PORT=… ARGS='--flag …' are passed on
# make test      install, check, then run the tests          ARGS='-k name' is passed to pytest
# make check     formatting, types and import direction
# make install   .venv with Stonechat and all it needs to serve, at the tested versions
# PYTHON=…       the Python to use (3.11 or 3.12); VENV=… another place than .venv

VENV ?= .venv
PYTHON ?=
MODEL ?=
PORT ?=
ARGS ?=
STAMP := $(VENV)/.installed
DEV_STAMP := $(VENV)/.installed-dev

.PHONY: help install serve check test format clean

help:
	@sed -n 's/^# //p' Makefile

install: $(STAMP)
	@:

$(STAMP): pyproject.toml constraints.txt scripts/install
	@VENV='$(VENV)' PYTHON='$(PYTHON)' scripts/install all
	@touch $@

#: gpu is Triton, whose kernels are tested on the CPU too
$(DEV_STAMP): pyproject.toml constraints.txt scripts/install
	@VENV='$(VENV)' PYTHON='$(PYTHON)' scripts/install all,dev,gpu
	@touch $(STAMP) $@

serve: $(STAMP)
	@exec $(VENV)/bin/stonechat serve $(if $(MODEL),'$(MODEL)') $(if $(PORT),--port '$(PORT)') $(ARGS)

check: $(DEV_STAMP)
	@VENV='$(VENV)' scripts/check

test: check
	@VENV='$(VENV)' scripts/test $(ARGS)

format: $(DEV_STAMP)
	@VENV='$(VENV)' scripts/format

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis dist build
