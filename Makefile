# Each target does all its set-up: .venv is created and filled on first use.
.PHONY: help setup demo test test-full simulation chaos soak lint bench docs train clean

PYTHON ?= python3
MINUTES ?= 30
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
say = @printf '\033[1m%s\033[0m\n' "$(1)"
PYTEST := $(BIN)/python -m pytest --durations=15
# A process that has stood still for longer than any test may take is ended, with the stacks of its threads, and another goes on.
SIDE_BY_SIDE := --max-worker-restart 4 -o faulthandler_timeout=1300 -o faulthandler_exit_on_timeout=true
# Runs tests side by side, four of those that mostly wait, two of those that compute. Many have deadlines in real time, and
# neighbours on two cores can make one late: what fails is run once more, by itself, and must pass then.
define side_by_side
$(PYTEST) $(if $(1),-n $(1) $(SIDE_BY_SIDE)) $(2) || \
	{ [ $$? = 1 ] || exit 1; printf '\033[1m%s\033[0m\n' 'what failed, by itself'; $(PYTEST) --last-failed --last-failed-no-failures none $(2); }
endef

help: ## what can be done here
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 14

setup: $(STAMP) ## create .venv and install everything for CPU

demo: $(STAMP) ## one sentence in; a text, an image, a voice and a film out; graded
	@$(BIN)/python -m tools.demo

test: $(STAMP) ## unit, integration and end-to-end tests
	$(call say,unit)
	@$(call side_by_side,2,tests/unit)
	$(call say,integration)
	@$(call side_by_side,4,tests/integration)
	$(call say,end to end)
	@$(call side_by_side,2,tests/e2e)
	$(call say,chaos in short)
	@$(PYTEST) -x tests/chaos

test-full: test ## the same, and the scenarios and presets on real engines
	$(call say,scenarios and presets)
	@$(call side_by_side,2,tests/full)

simulation: $(STAMP) ## 100,000 interleavings of the product on a modelled broker, 30,000 with shared memory: half an hour
	@$(BIN)/python -m tests.simulation --seeds 0..100000
	@$(BIN)/python -m tests.simulation --seeds 0..30000 --hosted

chaos: $(STAMP) ## kill, hang, cut off and poison everything under load; CHAOS_SEED, CHAOS_ONLY
	@$(BIN)/python -m tests.chaos

soak: $(STAMP) ## mixed load and kills for MINUTES (30), and whether anything grows
	@MINUTES=$(MINUTES) $(BIN)/python -m tests.chaos.soak

lint: $(STAMP) ## ruff, mypy and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-cache

bench: $(STAMP) ## every figure beside its peers, into docs/reference/benchmarks.md; QUICK=1: six minutes, no page
	@$(BIN)/python -m bench.all $(if $(QUICK),--quick,--write-docs)

docs: $(STAMP) ## the documentation as a site, in out/site; fails for a broken link or a page that nothing leads to
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo out/site/index.html

train: $(STAMP) ## train omni-tiny anew, under 20 minutes on two cores
	@$(BIN)/python -m tools.omni_tiny.training

clean: ## remove .venv and everything built
	rm -rf $(VENV) out build dist examples/node/node_modules
	rm -rf .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# uv comes from PyPI when it is absent. It does not read pip's configuration, so a local wheel folder is handed over;
# elsewhere torch comes from its own CPU index. Bytecode is compiled now: it saves 45 s at the first engine start.
$(STAMP): pyproject.toml
	$(call say,setting up $(VENV))
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@test -x $(BIN)/uv || $(BIN)/python -m pip install --quiet uv
	$(call say,installing torch and vllm and what they need: some minutes the first time)
	@if [ -n "$$PIP_FIND_LINKS" ]; then export UV_FIND_LINKS="$$PIP_FIND_LINKS"; else backend=--torch-backend=cpu; fi; \
	VIRTUAL_ENV=$(VENV) $(BIN)/uv pip install --quiet $$backend --compile-bytecode -e '.[cpu,diffusers,transformers,dev]'
	@touch $(STAMP)
	$(call say,$(VENV) is ready)
