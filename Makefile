# Everything a person types. `make` without a target prints this list.
PYTHON ?= python3
RESULTS ?= results
PORT ?= 5000
# As many processes run tests at once. Tests wait for servers and other processes: one more than two cores keeps both
# busy. Each may start a Ray of its own, which takes up to 5 GB.
WORKERS ?= 3

# What a person sets is text: neither make nor the shell looks into it for something to run.
SET := PYTHON RESULTS STORE RECIPE DATA WEIGHTS GPUS PORT WORKERS
define NEWLINE


endef
$(foreach name,$(SET),$(if $(findstring $(NEWLINE),$(value $(name))),$(error $(name) has a line break: give it without one)))
$(foreach name,$(SET),$(eval override $(name) := $$(value $(name))))
# Its argument as one word of the shell.
quoted = '$(subst ','\'',$(1))'

# Not by abspath, which takes a path with spaces for several.
RESULTS_FOLDER := $(if $(filter /%,$(firstword $(RESULTS))),$(RESULTS),$(CURDIR)/$(RESULTS))
ifeq ($(STORE),)
override STORE := sqlite:///$(RESULTS_FOLDER)/mlflow.db
endif

override VENV := .venv
override RUN := $(VENV)/bin/python
override STAMP := $(VENV)/.installed
override PYTEST := $(VENV)/bin/pytest -n $(call quoted,$(WORKERS)) --dist worksteal

export MLFLOW_DISABLE_TELEMETRY := true
export RAY_USAGE_STATS_ENABLED := 0

.DEFAULT_GOAL := help
.PHONY: help setup reproduce-table5 simulate pictures test test-kill test-cluster test-damage check mlflow docs lock clean

help:  ## this list
	@grep -hE '^[a-z0-9-]+:.*  ## ' $(MAKEFILE_LIST) | awk -F ':.*  ## ' '{printf "  make %-18s %s\n", $$1, $$2}'

setup: $(STAMP)  ## create .venv and install everything, at the exact versions of constraints.txt

$(STAMP): pyproject.toml constraints.txt
	@$(call quoted,$(PYTHON)) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; found $$($(call quoted,$(PYTHON)) --version). Name one: make PYTHON=python3.12 setup"; exit 1; }
	$(call quoted,$(PYTHON)) -m venv $(VENV)
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

# Exit status 3 says that a claim of the paper is contradicted: a result, and no failure of ours.
reproduce-table5: $(STAMP)  ## all of Table 5: ten configurations, seeds added until the claims are decided, an A/A row, verdict and report. RECIPE= DATA= WEIGHTS= GPUS= for the paper's own setting
	$(RUN) -m sweeps run table5 --storage $(call quoted,$(RESULTS)) --tracking-uri $(call quoted,$(STORE)) \
		$(if $(RECIPE),--recipe $(call quoted,$(RECIPE))) $(if $(DATA),--data $(call quoted,$(DATA))) \
		$(if $(WEIGHTS),--weights $(call quoted,$(WEIGHTS))) $(if $(GPUS),--gpus-per-trial 1 --concurrent $(call quoted,$(GPUS))) || [ $$? -eq 3 ]

test: $(STAMP)  ## everything that CI runs: lint, types, import contracts, all tests
	@$(MAKE) --no-print-directory browser
	$(MAKE) --no-print-directory lint
	$(PYTEST)

test-kill: $(STAMP)  ## the long kill test: ten kills of workers, drivers and heads, at most half an hour
	TOCO_KILLS=10 $(VENV)/bin/pytest tests/sweeps/test_kill.py --timeout 1800

test-cluster: $(STAMP)  ## tests on several hosts of this machine, and in a Slurm of three nodes: needs root, namespaces and slurm-wlm, an hour
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[cluster-test]'
	TOCO_CLUSTER_TESTS=1 $(VENV)/bin/pytest tests/cluster_lab --timeout 3600

simulate: $(STAMP)  ## error, power and trainings of sequential studies: 20,000 studies a case, three hours on one core
	OMP_NUM_THREADS=1 $(RUN) -m benchmarks sequential-seeds --studies 20000 --out benchmarks/results/sequential_seeds.json

pictures: reproduce-table5  ## the README's pictures, from Table 5 and two more trainings
	PYTHONPATH=. $(RUN) docs/make_pictures.py $(call quoted,$(RESULTS))

test-damage: $(STAMP)  ## the long damage test: five thousand damaged files, others each time
	TOCO_DAMAGES=5000 TOCO_DAMAGE_SEED=$$(date +%s) $(PYTEST) tests/damage

check: $(STAMP)  ## lint, types, import contracts and the fast tests
	$(MAKE) --no-print-directory lint
	$(PYTEST) -m 'not slow'

# Tests of the demo's page drive a Chromium. One is installed only where nobody's machine is changed by it: as root, with apt-get, as in a container.
.PHONY: browser
browser:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null; then :; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
		echo "Installing Chromium by apt-get, for the tests of the demo's page."; \
		apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq --yes --no-install-recommends chromium \
			|| echo "Chromium could not be installed: the tests of the demo's page are skipped."; \
	else echo "There is no Chromium: the tests of the demo's page are skipped."; fi

.PHONY: lint
lint:
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy
	$(VENV)/bin/lint-imports

mlflow: $(STAMP)  ## open the MLflow UI on loopback over the results of this folder
	$(RUN) -m toco mlflow $(call quoted,$(STORE)) --port $(call quoted,$(PORT))

docs: $(STAMP)  ## the site of docs/ and of the docstrings, in docs/_build; a warning is an error
	$(VENV)/bin/pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(VENV)/bin/sphinx-build --quiet --fail-on-warning --keep-going -b html -c docs . docs/_build
	@echo "The first page is $(CURDIR)/docs/_build/index.html"

lock:  ## write requirements.lock, the files of constraints.txt by their SHA-256; needs uv
	{ echo "# Written by 'make lock' from constraints.txt: all but torch and torchvision, whose builds differ by machine."; \
	  grep -vE '^(#|torch==|torchvision==)' constraints.txt | sed "s/^triton==.*/& ; sys_platform == 'linux'/" \
	  | uv pip compile - --universal --python-version 3.11 --no-deps --generate-hashes --no-annotate --no-header \
	    --no-emit-index-url --quiet; } > requirements.lock

clean:  ## delete the environment and caches; results stay
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis docs/_build
