# One line per target: `make help`. Everything is installed in .venv and nothing outside the project is touched.
PYTHON ?= python3
export CLIPSTREAM_HOME ?= $(CURDIR)

BIN := .venv/bin
STAMP := .venv/.installed
BENCH_STAMP := .venv-bench/.installed
UV := $(BIN)/uv pip
# A warning fails it; --quiet would mute the warnings. The variable silences the theme's notice about its successor.
DOCS := NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict
STORE ?= $(firstword $(wildcard mlflow.db .demo/mlflow.db) mlflow.db)

.DEFAULT_GOAL := help
.PHONY: help setup demo test lint docs pictures bench drill fuzz ui cluster cluster-stop lock clean

help: ## this list
	@echo 'clipstream: from a folder of videos to a served video classifier'
	@echo
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))
	@echo
	@echo 'Every target sets up .venv first if need be (PYTHON=python3.12 chooses the Python).'

setup: $(STAMP) ## install the locked requirements and the project into .venv
	@echo 'installed in .venv; next, with one folder of videos per class in data/:'
	@echo '  . .venv/bin/activate && python -m packer data shards     (make demo shows the whole pipeline first)'

demo: $(STAMP) ## the whole pipeline in minutes: make videos, pack, train on Ray, register, serve, ask
	@$(BIN)/python -m tests.demo

test: $(STAMP) ## run every test
	$(BIN)/python -m pytest $(if $(TESTS),$(TESTS),-n 2 --dist loadfile)

lint: $(STAMP) ## ruff, ruff format, mypy, and the documentation as `make docs` builds it
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(DOCS)

docs: $(STAMP) ## build the documentation into site/; a broken link or a missing docstring fails
	$(DOCS)
	@echo 'open site/index.html; for its search: $(BIN)/python -m http.server --bind 127.0.0.1 --directory site'

bench: $(STAMP) $(BENCH_STAMP) ## measure against the usual ways; a table, and JSON in bench-results/
	$(BIN)/python -m tests.bench $(ROWS)

drill: $(STAMP) ## kill, stop and break real trainings and servers; tables of what it cost
	$(BIN)/python -m tests.drill $(DRILLS)

fuzz: $(STAMP) ## send 10,000 damaged videos to a real server; what breaks it is kept in fuzz-findings/
	$(BIN)/python -m tests.fuzz $(FUZZ)

pictures: $(STAMP) ## make the pictures in docs/pictures anew from the demo, which is run first if need be
	$(BIN)/python -m tests.pictures

ui: $(STAMP) ## show runs and models in MLflow's page, of ./mlflow.db or, if there is none, of the demo; PORT=5001
	@MLFLOW_TRACKING_URI=$${MLFLOW_TRACKING_URI:-sqlite:///$(abspath $(STORE))} $(BIN)/python -m trainer ui --port $(or $(PORT),5000)

cluster: $(STAMP) ## start a Ray cluster on this machine: loopback, token authentication
	@bash configs/deploy/cluster.sh start

cluster-stop: ## stop the Ray cluster that `make cluster` started, and nothing else
	@bash configs/deploy/cluster.sh stop

lock: $(STAMP) ## write requirements.lock, and the bench's, anew from pyproject.toml
	$(UV) compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		--extra s3 --extra explain --extra dev pyproject.toml -o requirements.lock
	$(UV) compile --quiet --universal --generate-hashes --no-emit-index-url --python-version 3.11 \
		tests/bench/requirements.in -o tests/bench/requirements.lock

clean: cluster-stop ## delete what the targets above made, but not .venv, your shards, runs or MLflow store
	rm -rf .demo bench-results fuzz-findings site build dist *.egg-info .venv-bench .pytest_cache .mypy_cache .ruff_cache

# The stamps are newer than what they were made from, so that set-up runs once, and again when the lock changes.
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 11) or sys.exit("$(PYTHON) is %d.%d: clipstream needs Python \
	3.11 or newer; name one by make PYTHON=/path/to/python3.11" % sys.version_info[:2])'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	@# Compiled now, by all cores: Ray starts a dozen processes for one command, and each would compile what it imports.
	$(UV) install --python $(BIN)/python --compile-bytecode --require-hashes -r requirements.lock
	$(UV) install --python $(BIN)/python --quiet --no-deps --no-build-isolation -e .
	@touch $@

$(BENCH_STAMP): tests/bench/requirements.lock $(STAMP)
	$(BIN)/python -m venv --without-pip .venv-bench
	$(UV) install --python .venv-bench/bin/python --require-hashes -r tests/bench/requirements.lock
	@touch $@
