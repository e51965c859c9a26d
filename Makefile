# Each target does all its set-up: .venv is created and filled on first use.
.PHONY: help setup demo test test-full lint bench train clean

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

help: ## what can be done here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv and install everything for CPU

# uv comes from PyPI when it is absent. It does not read pip's configuration, so a local wheel folder is handed over;
# elsewhere torch comes from its own CPU index. Bytecode is compiled now: it saves 45 s at the first engine start.
$(STAMP): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	if [ -n "$$PIP_FIND_LINKS" ]; then export UV_FIND_LINKS="$$PIP_FIND_LINKS"; else backend=--torch-backend=cpu; fi; \
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install $$backend --compile-bytecode -e '.[cpu,diffusers,transformers,dev]'
	touch $(STAMP)

clean: ## remove .venv and everything built
	rm -rf $(VENV) out build dist node_modules
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
