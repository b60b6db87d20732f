# steer-heal. Every target builds .venv first when it is missing; `make help` lists them.
# Which Python .venv is built with: python3.11, 3.12 or 3.13; empty takes the first that is here.
PYTHON ?=
CONFIG ?= configs/smollm2.toml
RUN ?= runs/$(or $(if $(call given,CONFIG),,$(call model_name)),$(basename $(notdir $(CONFIG))))
N ?= 1
SET ?=
EVAL ?= round
REBUILD ?=
MODEL ?= embedded
PORT ?= 8000
VECTORS ?=
WORKERS ?=
# cpu or gpu: which lock to install; the one that .venv was set up with, where there is one.
LOCK ?= $(or $(patsubst .venv/.ready-%,%,$(firstword $(wildcard .venv/.ready-cpu .venv/.ready-gpu))),$(if $(shell command -v nvidia-smi 2>/dev/null),gpu,cpu))

PY := .venv/bin/python
STAMP := .venv/.ready-$(LOCK)
PEERS := .venv/.ready-bench
RAY := .venv/.ready-cluster
# `mend` where there is a .venv that does not run, as after an upgrade of the system's Python: its stamp says nothing then.
MEND := $(if $(wildcard .venv),$(shell $(PY) -c 'import pip' 2>/dev/null || echo mend))

# A variable by its name: given on the command line or in the environment, or left at its default.
given = $(filter command environment override,$(firstword $(origin $1)))
# A value as one word of the shell's.
quote = '$(subst ','\'',$1)'
# The last part of a MODEL that was given and is not the default.
model_name = $(if $(call given,MODEL),$(notdir $(patsubst %/,%,$(filter-out embedded,$(MODEL)))))
FLAGS = --run $(call quote,$(RUN)) $(if $(REBUILD),--rebuild)
FROZEN = $(shell [ -f $(call quote,$(RUN)/config.toml) ] && echo yes)
# What begins a run, or must equal what it was begun with: a run that is there goes on with its frozen configuration.
CHOSEN = $(if $(call given,CONFIG)$(if $(FROZEN),,default),--config $(call quote,$(CONFIG))) $(if $(SETTINGS),--set $(call quote,$(SETTINGS))) $(if $(call given,MODEL),--model $(call quote,$(MODEL)))
# WORKERS=N is the setting by its short name.
SETTINGS = $(strip $(SET) $(if $(WORKERS),sweep.workers=$(WORKERS)))

# Misspelt variables, which make itself takes without a word.
KNOWN := CONFIG RUN N SET EVAL REBUILD MODEL PORT VECTORS WORKERS OUT PYTHON LOCK
STRANGE := $(filter-out $(KNOWN) SHELL MAKEFLAGS,$(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name))))
ifneq ($(STRANGE),)
$(shell $(firstword $(wildcard $(PY)) $(PYTHON) python3) -I shared/variables.py $(call quote,$(firstword $(STRANGE))) $(call quote,$($(firstword $(STRANGE)))) '$(KNOWN)' $(MAKECMDGOALS) $(foreach name,$(KNOWN),$(if $(filter command,$(firstword $(origin $(name)))),$(call quote,$(name)=$($(name))))))
$(error make has no variable $(STRANGE); it has $(KNOWN))
endif
without_digits = $(subst 0,,$(subst 1,,$(subst 2,,$(subst 3,,$(subst 4,,$(subst 5,,$(subst 6,,$(subst 7,,$(subst 8,,$(subst 9,,$1))))))))))
ifneq ($(filter round,$(MAKECMDGOALS)),)
ifneq ($(or $(call without_digits,$(N)),$(word 2,$(N)),$(filter 0 00 000,$(N)),$(if $(strip $(N)),,empty)),)
$(error N=$(N) is no number of rounds: a whole number from 1, as in make round N=2)
endif
endif
ifneq ($(filter study,$(MAKECMDGOALS)),)
ifneq ($(strip $(foreach name,N SET MODEL REBUILD EVAL,$(if $(filter command,$(origin $(name))),$(name)))),)
$(error make study takes CONFIG, RUN and OUT: rounds, models and settings are those of its [study] table and its arms)
endif
endif
ifneq ($(filter-out 1,$(REBUILD)),)
$(error REBUILD=$(REBUILD) says nothing: REBUILD=1, or none)
endif

# How hints spell a command. No comment behind the value: the blank before it would be part of it.
round report study serve verify status doctor: export STEER_HEAL_FORM := make

.PHONY: round report status study serve verify bench bench-setup cluster test test-long check doctor setup mend clean help
.DELETE_ON_ERROR:

help: ## the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo 'variables     CONFIG=$(CONFIG) RUN=$(RUN) N=$(N) MODEL=$(MODEL) SET="train.lam=0.1" WORKERS=$(WORKERS) EVAL=round|full REBUILD=1'

setup: $(STAMP) ## the environment, .venv

$(STAMP): requirements/$(LOCK).txt pyproject.toml $(MEND)
	@PYTHON='$(PYTHON)' requirements/install.sh $(LOCK)
	@touch $@

mend:

round: $(STAMP) ## rounds 1 to N with all their stages, then the report: make round N=2
	@$(PY) -m shared.pipeline $(FLAGS) $(CHOSEN) --rounds $(N) --eval $(call quote,$(EVAL))

status: $(STAMP) ## the runs below runs/: what is done, what is running, what comes next (RUN: one run, or another folder)
	@$(PY) -m shared.status --run $(if $(call given,RUN),$(call quote,$(RUN)),runs)

report: $(STAMP) ## the report of a run from its files (EVAL=full scores all items, cyclically, first)
	@$(PY) -m shared.pipeline $(FLAGS) --report --eval $(call quote,$(EVAL)) $(if $(SET),--set $(call quote,$(SET)))

study: CONFIG = configs/study-smollm2.toml
study: OUT = docs/study
study: $(STAMP) ## arms x rounds x seeds against controls, into OUT=docs/study; goes on where it was interrupted
	@$(PY) -m evals.study --config $(call quote,$(CONFIG)) --run $(call quote,$(RUN)) --out $(call quote,$(OUT))

bench: $(PEERS) ## the benchmarks as ratios, into docs/bench.json (about an hour and a half on two cores)
	@$(PY) -m gen.bench --out docs/bench.json
	@$(PY) -m train.bench --out docs/bench.json
	@$(PY) -m evals.bench --out docs/bench.json

bench-setup: $(STAMP) ## set-up against plain pip, into docs/bench.json (downloads all six times: 10 to 40 minutes)
	@$(PY) -m shared.bench --out docs/bench.json

$(PEERS): requirements/bench.txt $(STAMP)
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps -r requirements/bench.txt
	@touch $@

cluster: $(RAY) ## Ray, for a sweep on the machines of a cluster (docs/scale.md)

$(RAY): requirements/cluster.txt $(STAMP)
	@.venv/bin/uv pip install --quiet --python $(PY) --no-deps -r requirements/cluster.txt
	@touch $@

test: $(STAMP) $(RAY) ## every test that needs no GPU, two files at a time
	@$(PY) -m pytest -n 2 --dist loadfile

serve: $(STAMP) ## an OpenAI-compatible server, steered per request: make serve VECTORS="trait=vector.safetensors" (MODEL, PORT)
	@$(PY) -m gen.serve --config $(call quote,$(CONFIG)) --set $(call quote,$(SET)) $(if $(call given,MODEL),--model $(call quote,$(MODEL))) --port $(PORT) $(addprefix --vector ,$(VECTORS))

verify: $(STAMP) ## does steering work on this machine and this model? a report to paste (MODEL)
	@$(PY) -m gen.verify --config $(call quote,$(CONFIG)) --set $(call quote,$(SET)) $(if $(call given,MODEL),--model $(call quote,$(MODEL)))

test-long: $(STAMP) $(RAY) ## the tests that take too long for make test
	@$(PY) -m pytest -m long

check: $(STAMP) ## lint and types
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

doctor: ## what this machine has, what is missing, what to type
	@for python in $(PY) $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then exec $$python -m shared.doctor; fi; done; \
	echo 'error: there is no Python here'; echo '  next:     install CPython 3.11, 3.12 or 3.13, then make setup'; exit 2

clean: ## remove what was built; runs stay
	rm -rf .venv .setup.lock *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis unsloth_compiled_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
