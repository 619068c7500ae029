# Everything a newcomer needs: `make quickstart`. Every target installs first if there is no .venv.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: install quickstart test test-slow lint docs clean

install: $(STAMP)

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit(sys.version_info < (3, 11) and 'Python >= 3.11 is needed: make PYTHON=python3.11 install')"
	$(PYTHON) -m venv $(VENV)
	@echo "installing into $(VENV): torch and its CUDA libraries are about 5 GB, the first time takes minutes"
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test,tensorboard]'
	touch $(STAMP)

# Distil one student per teacher upsampler, probe them all, print the Δm table. Offline, about twelve minutes on two cores.
# Two processes draw the scenes on two cores; a step takes about as long as in one process of two threads. Beside a GPU: one.
PROCESSES ?= $(shell nvidia-smi -L >/dev/null 2>&1 && echo 1 || $(PYTHON) -c "import os; print(min(2, os.cpu_count()))")
quickstart: install
	$(BIN)/torchrun --standalone --nproc-per-node $(PROCESSES) distill/ablate.py recipes/quickstart.yaml

# One file of tests a process at a time, as many processes as cores, up to four: each imports torch.
test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q --numprocesses auto --maxprocesses 4 --dist loadfile

test-slow: install
	$(BIN)/python -m pytest -q -m slow --timeout 3600

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The site, into build/site.
docs: install
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache *.egg-info
