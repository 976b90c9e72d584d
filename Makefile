# Everything a developer or a new user runs. `make demo` and `make test` install what is missing, and say so.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.installed
# Test files run at the same time; each has its own servers, and much of a test is waiting.
WORKERS ?= 3
# Labs mount, and start daemons in namespaces of their own: root's work.
ROOT   := $(if $(filter 0,$(shell id -u)),,$(if $(shell command -v sudo),sudo))

.PHONY: demo test faults every-boundary planted-bugs coverage check format bench docs packages environment clean

environment: $(STAMP)

packages:
	@sh lab/packages.sh

$(STAMP): constraints.txt pyproject.toml | packages
	@echo "== making the virtual environment $(VENV) (pinned, with hashes)"
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --require-hashes -r constraints.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $@

demo: packages $(STAMP)
	@$(ROOT) $(BIN)/python -m lab demo

test: packages $(STAMP)
	$(ROOT) env CI=$(CI) $(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

# Random work and faults for MINUTES, or CYCLES of them; everything is chosen by SEED.
faults: packages $(STAMP)
	$(ROOT) $(BIN)/python -m tests.faults $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED)) $(if $(CYCLES),--cycles $(CYCLES))

# Killed at every boundary, where `make test` tries a selection.
every-boundary: packages $(STAMP)
	$(ROOT) $(BIN)/python -m pytest tests/faults tests/cluster/test_lost_node.py tests/cluster/test_moved_in_restore.py tests/cluster/test_moved_in_work.py --all-faults

# Tests that cannot fail are worse than none: bugs are planted in a copy, and tests have to turn red.
planted-bugs: packages $(STAMP)
	$(ROOT) $(BIN)/python -m tests.planted --workers $(WORKERS)

# The whole suite, also what it starts; then what of agent and controller ran. Processes ended by SIGKILL tell nothing.
coverage: packages $(STAMP)
	$(ROOT) rm -rf .cache/coverage
	mkdir -p .cache
	$(ROOT) env CI=$(CI) $(BIN)/python -m coverage run -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder
	$(ROOT) $(BIN)/python -m coverage combine --quiet
	$(ROOT) $(BIN)/python -m coverage report --show-missing --skip-covered
	$(ROOT) $(BIN)/python -m tests.coverage_gate

check: packages $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: packages $(STAMP)
	$(ROOT) $(BIN)/python -m bench $(BENCH)

docs: $(STAMP)
	$(BIN)/python -m docs.generate

clean:
	rm -rf $(VENV) .cache build *.egg-info
