# Every command of the project. Everything runs in .venv, which the first target makes.
.DEFAULT_GOAL := help
SHELL := /bin/bash -o pipefail
PYTHON ?= python3
BIN := .venv/bin

CONFIG ?= bert_docs
TASK ?= docs_proofreading
TASKS ?=
MODEL ?= runs/pretrain/bert_docs/export
TEACHER ?= $(MODEL)
STUDENT ?=
STUDENTS ?=
SEEDS ?= 1
TRIALS ?= 20
SHOTS ?= 0,1,4
RUNS ?=
DATA ?=
ARGS ?=
RUN ?=
REPO ?=
PROCESSES ?= 1
GPUS ?= 0
MACHINES ?= 1
RANK ?= 0
HEAD ?= 127.0.0.1
PORT ?= 29500

comma := ,
empty :=
space := $(empty) $(empty)
quoted = $(if $(findstring $(space),$(1)),'$(1)',$(1))
list = [$(subst $(space),$(comma) ,$(foreach item,$(1),"$(item)"))]
# A configuration by its name in a folder of configs/, or by its path.
yaml = $(if $(filter %.yaml,$(2)),$(2),configs/$(1)/$(2).yaml)
CONFIGS := $(call yaml,pretrain,$(CONFIG))
TASK_FILE := $(call yaml,finetune,$(TASK))
# The model to start from, or a translation model by the name of its configuration, which is built anew.
START := $(or $(wildcard configs/translation/$(MODEL).yaml),$(call quoted,model.from=$(MODEL)))
OVERRIDES := $(if $(DATA),'data.path=$(call list,$(DATA))') $(ARGS)

# The variables that each target takes. make would ignore all others, also misspelt ones, so they are refused. Names with an
# underscore belong to the programs (GLUE_DIR, WANDB_MODE).
SPREAD := PROCESSES GPUS MACHINES RANK HEAD PORT
TAKES_data := CONFIG DATA ARGS
TAKES_pretrain := CONFIG DATA ARGS $(SPREAD)
TAKES_embed := CONFIG ARGS $(SPREAD)
TAKES_finetune := TASK MODEL SEEDS ARGS $(SPREAD)
TAKES_search := TASK MODEL TRIALS ARGS
TAKES_rates := CONFIG TASK MODEL DATA ARGS
TAKES_glue := TASKS MODEL SEEDS ARGS
TAKES_submission := MODEL ARGS
TAKES_distill := CONFIG TASK TEACHER STUDENT SEEDS DATA ARGS $(SPREAD)
TAKES_generate := MODEL PROMPT ARGS
TAKES_fewshot := TASK MODEL SHOTS ARGS
TAKES_probes := MODEL ARGS
TAKES_translate := MODEL TEXT ARGS
TAKES_predict := MODEL TASK DATA ARGS
TAKES_evaluate := MODEL TASK DATA ARGS
TAKES_export := MODEL ARGS
TAKES_push := MODEL REPO ARGS
TAKES_compare := TEACHER STUDENTS ARGS
TAKES_onnx := MODEL ARGS
TAKES_watch := RUN ARGS
TAKES_dashboard := ARGS
TAKES_report := RUNS ARGS
TAKES_inspect := MODEL TEXT PAIR ARGS
TAKES_screenshots := ARGS
TAKES_bench := ARGS
TAKES_test := ARGS
TAKEN := $(foreach goal,$(MAKECMDGOALS),$(TAKES_$(goal))) HUB PYTHON
GIVEN := $(foreach name,$(.VARIABLES),$(if $(filter command,$(firstword $(origin $(name)))),$(name)))
STRAY := $(strip $(foreach name,$(filter-out $(TAKEN),$(GIVEN)),$(if $(findstring _,$(name)),,$(name))))
$(if $(and $(MAKECMDGOALS),$(STRAY)),$(error make $(MAKECMDGOALS) does not take $(STRAY); it takes $(strip $(TAKEN))))

$(if $(and $(filter rates,$(MAKECMDGOALS)),$(filter CONFIG,$(GIVEN)),$(filter TASK MODEL,$(GIVEN))),\
  $(error make rates: CONFIG is for pretraining, TASK and MODEL are for fine-tuning; leave out one of the two))

# Each run of several seeds is one process.
$(if $(and $(filter finetune distill,$(MAKECMDGOALS)),$(filter-out 1,$(SEEDS)),$(filter-out 0 1,$(GPUS) $(PROCESSES) $(MACHINES))),\
  $(error with SEEDS=$(SEEDS) a run is one process, with a GPU or cores of its own; leave out GPUS, PROCESSES and MACHINES))

# Checked here: otherwise the shell's arithmetic or torchrun would fail.
$(foreach name,$(if $(filter pretrain embed finetune distill,$(MAKECMDGOALS)),PROCESSES MACHINES),$(if $(shell [[ '$($(name))' =~ ^[1-9][0-9]*$$ ]] || echo none),\
  $(error $(name): given '$($(name))'; it is a number, 1 or more)))

$(if $(and $(filter-out 0,$(GPUS)),$(filter-out 1,$(PROCESSES))),\
  $(error PROCESSES=$(PROCESSES) is for CPUs; with GPUS=$(GPUS) each GPU has one process, leave out the other))

# One process is plain `python -m`. Several on CPUs use torchrun (accelerate launch would start one). GPUs use accelerate launch
# with every flag, so that no default file of the user applies, after a check that the machine has them.
ifneq ($(GPUS),0)
  THERE = $(BIN)/python -m bertillery.system.gpus '$(GPUS)' &&
  LAUNCH = $(THERE) $(BIN)/accelerate launch --num_processes $$(( $(GPUS) * $(MACHINES) )) --num_machines $(MACHINES) \
           --machine_rank $(RANK) --main_process_ip $(HEAD) --main_process_port $(PORT) --mixed_precision no \
           --dynamo_backend no $(if $(filter-out 1,$(GPUS) $(MACHINES)),--multi_gpu) -m
else ifneq ($(filter-out 1,$(PROCESSES) $(MACHINES)),)
  LAUNCH = OMP_NUM_THREADS=$${OMP_NUM_THREADS:-$$(( ($$(nproc) + $(PROCESSES) - 1) / $(PROCESSES) ))} $(BIN)/torchrun \
           --nproc-per-node $(PROCESSES) --nnodes $(MACHINES) --node-rank $(RANK) --master-addr $(HEAD) --master-port $(PORT) -m
  DEVICE := run.device=cpu
else
  LAUNCH = $(BIN)/python -m
endif

# No network without HUB=1 or a hub: path.
export HF_HUB_OFFLINE ?= $(if $(or $(filter-out 0,$(HUB)),$(findstring hub:,$(DATA) $(ARGS))),0,1)
export TOKENIZERS_PARALLELISM ?= false

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## /{printf "make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "CONFIG=<name in configs/pretrain or a .yaml>  DATA='<files, folders, globs, hub:owner/name>'  ARGS='key.sub=value ...'"
	@echo "TASK=<name in configs/finetune or a .yaml>  TASKS=<names, with commas>  MODEL=<directory or Hub id>  SEEDS=<n>  TRIALS=<n>"
	@echo "REPO=<owner/name on the Hub>  RUN=<folder of a run>"
	@echo "PROMPT='a text to continue'  TEXT='a sentence'  PAIR='a second text'  RUNS='<folders>'  SHOTS=<numbers of worked examples, with commas>"
	@echo "HUB=1 (models and data may come from the Hub)  GLUE_DIR=<folder of CoLA, SST-2, ...> (GLUE's data from there)"
	@echo "TEACHER=<directory or Hub id>  STUDENT=<directory or Hub id>  STUDENTS='<directories>'"
	@echo "PROCESSES=<CPU processes>  GPUS=<per machine>  MACHINES=<n> RANK=<this one> HEAD=<address of machine 0>"
	@echo "configurations: $(basename $(notdir $(wildcard configs/pretrain/*.yaml)))"
	@echo "configurations of make embed: $(basename $(notdir $(wildcard configs/embed/*.yaml)))"
	@echo "tasks of make fewshot: $(basename $(notdir $(wildcard configs/prompting/*.yaml)))"
	@echo "translation models: $(basename $(notdir $(wildcard configs/translation/*.yaml)))"
	@echo "students: $(basename $(notdir $(wildcard configs/distill/*.yaml)))"
	@echo "tasks: $(basename $(notdir $(wildcard configs/finetune/*.yaml)))"

.venv/.installed: pyproject.toml constraints.txt
	@echo 'installing pinned versions into .venv (a minute or more, once)'
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $@

.PHONY: install
install: .venv/.installed ## make .venv and install pinned versions into it

.PHONY: data
data: .venv/.installed ## prepare corpus and tokenizer alone: CONFIG, DATA
	@$(BIN)/python -m pretrain.prepare $(CONFIGS) $(OVERRIDES)

.PHONY: pretrain
pretrain: .venv/.installed ## pretrain an encoder: CONFIG, DATA, PROCESSES or GPUS
	@$(LAUNCH) pretrain $(CONFIGS) $(OVERRIDES) $(DEVICE)

# The default of CONFIG is for pretraining.
EMBEDS := $(call yaml,embed,$(if $(filter file,$(origin CONFIG)),transe_docs,$(CONFIG)))

.PHONY: embed
embed: .venv/.installed ## vectors of a knowledge graph's entities, by TransE: CONFIG
	@$(LAUNCH) knowledge $(EMBEDS) $(ARGS) $(DEVICE)

.PHONY: finetune
finetune: .venv/.installed ## fine-tune an encoder: TASK, MODEL, SEEDS, PROCESSES or GPUS
ifeq ($(SEEDS),1)
	@$(LAUNCH) finetune $(TASK_FILE) $(START) $(ARGS) $(DEVICE)
else
	@$(THERE) $(BIN)/python -m experiments.seeds tasks=[$(TASK)] seeds=$(SEEDS) $(START) $(ARGS)
endif

.PHONY: generate
generate: export PROMPT := $(value PROMPT)
generate: .venv/.installed ## continue a text with a causal model: MODEL, PROMPT
	@$(BIN)/python -m prompting.generate $(call quoted,model=$(MODEL)) $(ARGS)

# A fine-tuning task with a prompt of its own is both files.
PROMPTED := $(wildcard configs/finetune/$(TASK).yaml) $(call yaml,prompting,$(TASK))

.PHONY: fewshot
fewshot: .venv/.installed ## evaluate a causal model in context: TASK, MODEL, SHOTS
	@$(BIN)/python -m prompting.fewshot $(PROMPTED) $(call quoted,model=$(MODEL)) 'shots=[$(SHOTS)]' $(ARGS)

.PHONY: probes
probes: .venv/.installed ## does a causal model learn from its context? MODEL
	@$(BIN)/python -m prompting.probes $(call quoted,model=$(MODEL)) $(ARGS)

.PHONY: translate
translate: export TEXT := $(value TEXT)
translate: .venv/.installed ## translate a sentence: MODEL, TEXT
	@$(BIN)/python -m translation $(call quoted,model=$(MODEL)) $(ARGS)

.PHONY: search
search: .venv/.installed ## random search of settings: TASK, MODEL, TRIALS; ARGS='space=bert_grid'
	@$(BIN)/python -m experiments.search $(TASK_FILE) $(START) trials=$(TRIALS) $(ARGS)

.PHONY: rates
rates: .venv/.installed ## learning-rate range test, with its picture: TASK, MODEL; of pretraining CONFIG, DATA
	@$(BIN)/python -m experiments.rates $(if $(filter file,$(origin CONFIG)),$(TASK_FILE) $(START),$(CONFIGS)) $(OVERRIDES)

.PHONY: glue
glue: .venv/.installed ## all of GLUE (or TASKS=a,b) and a table: MODEL, SEEDS; GLUE_DIR=<folder> without a network
	@$(BIN)/python -m experiments.seeds $(if $(TASKS),tasks=[$(TASKS)]) seeds=$(SEEDS) $(START) $(ARGS)

.PHONY: submission
submission: .venv/.installed ## the archive for gluebenchmark.com from the results of make glue: MODEL
	@$(BIN)/python -m experiments.glue $(call quoted,$(MODEL)) $(ARGS)

# The defaults of CONFIG and TASK belong to other targets: here they count only if given.
FOR_TASK := $(if $(filter file,$(origin TASK)),,$(TASK_FILE) $(if $(STUDENT),$(call quoted,model.from=$(STUDENT))))
DISTIL := $(if $(filter file,$(origin CONFIG)),$(if $(FOR_TASK),distilbert_task,distilbert_docs),$(CONFIG))
DISTILS := $(call yaml,distill,$(DISTIL))
OF_TASK := $(if $(FOR_TASK),,$(filter %_task,$(basename $(notdir $(DISTIL)))) $(if $(STUDENT),STUDENT))
$(if $(and $(filter distill,$(MAKECMDGOALS)),$(strip $(OF_TASK))),\
  $(error make distill: $(strip $(OF_TASK)) is for a task; give TASK=<name in configs/finetune> and STUDENT=<directory or Hub id>))

.PHONY: distill
distill: .venv/.installed ## distil a student: CONFIG, TEACHER, DATA; for a task TASK, STUDENT and SEEDS
ifeq ($(SEEDS),1)
	@$(LAUNCH) distill $(DISTILS) $(FOR_TASK) $(call quoted,teacher.from=$(TEACHER)) $(OVERRIDES) $(DEVICE)
else
	@$(THERE) $(BIN)/python -m experiments.seeds $(DISTILS) $(FOR_TASK) seeds=$(SEEDS) $(call quoted,teacher.from=$(TEACHER)) $(OVERRIDES)
endif

DEMO_TEACHER := runs/finetune/docs_proofreading/bert_docs/seed-12345/export
DEMO_STUDENT := runs/distill/distilbert_docs/export

.PHONY: demo
demo: ## all stages on the embedded text: pretrain, fine-tune, distil, compare
	@$(MAKE) --no-print-directory pretrain
	@$(MAKE) --no-print-directory finetune
	@$(MAKE) --no-print-directory distill
	@$(MAKE) --no-print-directory distill CONFIG=distilbert_task TASK=docs_proofreading TEACHER=$(DEMO_TEACHER) STUDENT=$(DEMO_STUDENT) ARGS="optim.learning_rate=3e-4 train.steps='4 epochs'"
	@$(MAKE) --no-print-directory finetune MODEL=$(DEMO_STUDENT) ARGS=model.weights=random
	@$(MAKE) --no-print-directory compare TEACHER=$(DEMO_TEACHER) STUDENTS="runs/distill/docs_proofreading/distilbert_docs-distilbert/seed-12345/export runs/finetune/docs_proofreading/distilbert_docs-random/seed-12345/export"

# Files of rows, and a task only where it is given: a model knows its own.
USED := $(if $(filter file,$(origin TASK)),,$(TASK_FILE)) $(call quoted,model=$(MODEL)) $(if $(DATA),'data=$(call list,$(DATA))')

.PHONY: predict
predict: .venv/.installed ## predictions for the rows of files, whatever their size: MODEL, DATA
	@$(BIN)/python -m deploy.predict $(USED) $(ARGS)

.PHONY: evaluate
evaluate: .venv/.installed ## score a model on labelled data, without training: MODEL, TASK or DATA
	@$(BIN)/python -m deploy.evaluate $(USED) $(ARGS)

.PHONY: export
export: .venv/.installed ## export a run again, from a checkpoint: MODEL=<folder of the run>; ARGS=checkpoint=best
	@$(BIN)/python -m deploy.export $(call quoted,model=$(MODEL)) $(ARGS)

.PHONY: push
push: .venv/.installed ## what would go to the Hub, and with HUB=1 send it: MODEL, REPO; ARGS='license=mit language=en'
	@$(BIN)/python -m deploy.push $(call quoted,model=$(MODEL)) $(call quoted,repo=$(REPO)) $(ARGS)

.PHONY: compare
compare: .venv/.installed ## teacher and students side by side, in size, speed and score: TEACHER, STUDENTS="a b"
	@$(BIN)/python -m deploy.compare $(call quoted,teacher=$(TEACHER)) 'students=$(call list,$(STUDENTS))' $(ARGS)

.venv/.onnx: .venv/.installed
	@echo 'installing the ONNX packages into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[onnx]'
	@touch $@

.PHONY: onnx
onnx: $(if $(filter --help -h --print-config,$(ARGS)),.venv/.installed,.venv/.onnx) ## a model for ONNX Runtime, in float32 and in 8 bits: MODEL
	@$(BIN)/python -m deploy.onnx $(call quoted,model=$(MODEL)) $(ARGS)

.PHONY: watch
watch: .venv/.installed ## a run on this machine in the terminal, without an account: RUN; ARGS=to=trackio
	@$(BIN)/python -m experiments.watch $(if $(RUN),$(call quoted,run=$(RUN))) $(ARGS)

.PHONY: dashboard
dashboard: .venv/.installed ## workspaces in W&B for pretraining, fine-tuning, distillation, translation
	@$(BIN)/python -m experiments.dashboard $(ARGS)

# trackio asks for an older Pillow than was tested, and for that alone.
.PHONY: trackio
trackio: .venv/.installed ## install trackio, whose web page needs no account (tracking.to=trackio)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c <(grep -v '^pillow=' constraints.txt) -e '.[trackio]'
.PHONY: report
report: .venv/.installed ## one page over runs, HTML and Markdown: RUNS="folders"
	@$(BIN)/python -m pages.report $(if $(RUNS),'runs=$(call list,$(RUNS))') $(ARGS)

.PHONY: inspect
inspect: export TEXT := $(value TEXT)
inspect: export PAIR := $(value PAIR)
inspect: .venv/.installed ## what a model does with a text, as a page: MODEL, TEXT, PAIR
	@$(BIN)/python -m pages.inspect $(call quoted,model=$(MODEL)) $(ARGS)

.venv/.browser: .venv/.installed
	@echo 'installing the package that drives a browser into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	@touch $@

.PHONY: screenshots
screenshots: .venv/.browser ## pictures of pages in Chromium, light and dark, wide and narrow: ARGS="pages.<name>=<file>"
	@$(BIN)/python -m pages.screenshots $(ARGS)

.PHONY: bench
bench: .venv/.installed ## measure this machine against stock transformers; ARGS="workloads=[glue] threads=[1]"
	@$(BIN)/python -m benchmarks $(ARGS)

.PHONY: test
test: .venv/.installed ## run the tests
	@OMP_NUM_THREADS=1 WANDB_MODE=offline $(BIN)/python -m pytest -n 2 --dist worksteal $(ARGS)

.venv/.site: .venv/.installed
	@echo 'installing the packages of the site into .venv'
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[site]'
	@touch $@

.PHONY: docs
docs: .venv/.site ## the documentation as a site, in site/; a broken link fails
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --quiet --strict && echo site/index.html

.PHONY: golden
golden: .venv/.installed ## rewrite the golden losses that the tests compare with
	@$(BIN)/python -m tests.write_golden

.PHONY: check
check: .venv/.installed ## lint and type-check
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/basedpyright

.PHONY: fix
fix: .venv/.installed ## format, and fix what lint can fix
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .
