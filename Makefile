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
CHOSEN = $(if $(call given,CONFIG),--config $(call quote,$(CONFIG))) $(if $(SETTINGS),--set $(call quote,$(SETTINGS))) $(if $(call given,MODEL),--model $(call quote,$(MODEL)))
# WORKERS=N is the setting by its short name.
SETTINGS = $(strip $(SET) $(if $(WORKERS),sweep.workers=$(WORKERS)))
# A run that is not there begins with the default CONFIG; where RUN alone is given, unless it is a likely typo of one that is there.
BEGUN = $(if $(FROZEN)$(call given,CONFIG),,$(if $(call given,RUN),--default-config,--config) $(call quote,$(CONFIG)))

# Misspelt variables and targets, and variables that no target at hand uses, which make itself takes without a word.
KNOWN := CONFIG RUN N SET EVAL REBUILD MODEL PORT VECTORS WORKERS OUT PYTHON LOCK
TARGETS := round report status study serve verify bench gpu bench-setup cluster test test-long check docs docs-results doctor setup clean help
USES_round := CONFIG RUN N SET EVAL REBUILD MODEL WORKERS
USES_report := CONFIG RUN SET EVAL REBUILD MODEL
USES_status := RUN
USES_study := CONFIG RUN OUT
USES_serve := CONFIG SET MODEL PORT VECTORS
USES_verify := CONFIG SET MODEL
USES_doctor := RUN
USES_docs-results := RUN
USES_help := $(KNOWN)
TYPED := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
GOALS := $(or $(MAKECMDGOALS),help)
# What to print: a kind of mistake, what it is about, and the command line, without a variable that is wrong in it.
refuse = $(shell $(firstword $(wildcard $(PY)) $(PYTHON) python3) -I shared/variables.py $1 $(call quote,$2) $(call quote,$($2)) $(call quote,$3) $4 $(foreach name,$(filter-out $2,$(filter $(KNOWN),$(TYPED))),$(call quote,$(name)=$($(name)))))
STRANGE := $(firstword $(filter-out $(KNOWN) SHELL MAKEFLAGS,$(TYPED)))
ifneq ($(STRANGE),)
$(call refuse,variable,$(STRANGE),$(KNOWN),$(MAKECMDGOALS))
$(error make has no variable $(STRANGE); it has $(KNOWN))
endif
# A folder of a target's name would be up to date: make tests.
FOLDER := $(firstword $(wildcard $(filter-out $(TARGETS) .% %.txt,$(MAKECMDGOALS))))
ifneq ($(FOLDER),)
$(call refuse,target,$(FOLDER),$(TARGETS),$(MAKECMDGOALS))
$(error make has no target $(FOLDER); make help lists them)
endif
UNUSED := $(if $(filter-out $(TARGETS),$(GOALS)),,$(firstword $(filter-out $(foreach goal,$(GOALS),$(USES_$(goal))) PYTHON LOCK,$(filter $(KNOWN),$(TYPED)))))
ifneq ($(UNUSED),)
$(call refuse,unused,$(UNUSED),$(sort $(foreach goal,$(GOALS),$(USES_$(goal)))),$(MAKECMDGOALS))
$(error make $(GOALS) does not use $(UNUSED))
endif
without_digits = $(subst 0,,$(subst 1,,$(subst 2,,$(subst 3,,$(subst 4,,$(subst 5,,$(subst 6,,$(subst 7,,$(subst 8,,$(subst 9,,$1))))))))))
ifneq ($(filter round,$(MAKECMDGOALS)),)
ifneq ($(or $(call without_digits,$(N)),$(word 2,$(N)),$(filter 0 00 000,$(N)),$(if $(strip $(N)),,empty)),)
$(error N=$(N) is no number of rounds: a whole number from 1, as in make round N=2)
endif
endif
ifneq ($(filter-out 1,$(REBUILD)),)
$(error REBUILD=$(REBUILD) says nothing: REBUILD=1, or none)
endif

# How hints spell a command. No comment behind the value: the blank before it would be part of it.
round report study serve verify gpu status doctor docs-results: export STEER_HEAL_FORM := make

.PHONY: $(TARGETS) mend
.DELETE_ON_ERROR:

help: ## the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 14
	@echo 'variables     CONFIG=$(CONFIG) RUN=$(RUN) N=$(N) MODEL=$(MODEL) SET="train.lam=0.1" WORKERS=$(WORKERS) EVAL=round|full REBUILD=1'

setup: $(STAMP) ## the environment, .venv

$(STAMP): requirements/$(LOCK).txt pyproject.toml $(MEND)
	@PYTHON='$(PYTHON)' requirements/install.sh $(LOCK)
	@touch $@

mend:

.DEFAULT:
	@$(if $(filter $@,$(MAKECMDGOALS)),$(call refuse,target,$@,$(TARGETS),$(MAKECMDGOALS)),echo "make: there is no $@, and no rule makes it" >&2;) exit 2

round: $(STAMP) ## rounds 1 to N with all their stages, then the report: make round N=2
	@$(PY) -m shared.pipeline $(FLAGS) $(CHOSEN) $(BEGUN) --rounds $(N) --eval $(call quote,$(EVAL))

status: $(STAMP) ## the runs below runs/: what is done, what is running, what comes next (RUN: one run, or another folder)
	@$(PY) -m shared.status --run $(if $(call given,RUN),$(call quote,$(RUN)),runs)

report: $(STAMP) ## the report of a run from its files (EVAL=full scores all items, cyclically, first)
	@$(PY) -m shared.pipeline $(FLAGS) $(CHOSEN) --report --eval $(call quote,$(EVAL))

study: CONFIG = configs/study-smollm2.toml
study: OUT = docs/study
study: $(STAMP) ## arms x rounds x seeds against controls, into OUT=docs/study; goes on where it was interrupted
	@$(PY) -m evals.study --config $(call quote,$(CONFIG)) --run $(call quote,$(RUN)) --out $(call quote,$(OUT))

bench: $(PEERS) ## the benchmarks as ratios, into docs/bench.json (about an hour and a half on two cores)
	@$(PY) -m gen.bench --out docs/bench.json
	@$(PY) -m train.bench --out docs/bench.json
	@$(PY) -m evals.bench --out docs/bench.json

gpu: $(STAMP) ## on a machine with a GPU: verify, parity, benchmarks and a round, into docs/gpu.json and docs/gpu.md (about half an hour; goes on where it was interrupted)
	@$(PY) -m shared.gpu_report --ready
	@$(MAKE) --no-print-directory $(PEERS)
	@$(PY) -m shared.gpu_report

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
	@$(PY) -m pytest -n 2 --dist loadfile --no-loadscope-reorder

serve: $(STAMP) ## an OpenAI-compatible server, steered per request: make serve VECTORS="trait=vector.safetensors" (MODEL, PORT)
	@$(PY) -m gen.serve --config $(call quote,$(CONFIG)) --set $(call quote,$(SET)) $(if $(call given,MODEL),--model $(call quote,$(MODEL))) --port $(PORT) $(addprefix --vector ,$(VECTORS))

verify: $(STAMP) ## does steering work on this machine and this model? a report to paste (MODEL)
	@$(PY) -m gen.verify --config $(call quote,$(CONFIG)) --set $(call quote,$(SET)) $(if $(call given,MODEL),--model $(call quote,$(MODEL)))

test-long: $(STAMP) $(RAY) ## the tests that take too long for make test
	@$(PY) -m pytest -m long

check: $(STAMP) ## lint and types
	@.venv/bin/ruff check . && .venv/bin/ruff format --check . && .venv/bin/mypy

docs: $(STAMP) ## docs/cli.md, docs/settings.md and the glossary, written from the code
	@$(PY) -m shared.reference --out docs
	@$(PY) -m shared.glossary

docs-results: $(STAMP) ## the report of RUN into docs/run, and its numbers into README.md and docs/results.md
	@$(PY) -m evals.docs_results --run $(call quote,$(RUN))

doctor: ## what this machine has, what is missing, what to type (RUN: where runs will be)
	@for python in $(PY) $(or $(PYTHON),python3.11 python3.12 python3.13 python3 python); do \
	  if $$python -c 'import sys; sys.exit(sys.version_info < (3, 9))' 2>/dev/null; then exec $$python -m shared.doctor $(if $(call given,RUN),--run $(call quote,$(RUN))); fi; done; \
	echo 'error: there is no Python here'; echo '  next:     install CPython 3.11, 3.12 or 3.13, then make setup'; exit 2

clean: ## remove what was built; runs stay
	rm -rf .venv .setup.lock *.egg-info .pytest_cache .ruff_cache .mypy_cache .hypothesis unsloth_compiled_cache
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
