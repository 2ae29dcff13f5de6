# make setup | demo | test | test-long | bench | lint | clean
# PYTHON=/path/to/python3.8 uses .venv-3.8 instead of .venv; TORCH=2.10.0, EXTRAS=lint and MMCV_CUDA=1
# change what is installed (docs/install.md).
PYTHON ?= python3
ifeq ($(origin PYTHON),command line)
VENV := .venv-$(shell $(PYTHON) -c 'import sys; print("%d.%d" % sys.version_info[:2])')
else
VENV := .venv
endif
RUN := $(VENV)/bin/python
DEMO := work_dirs/demo

.PHONY: setup demo test test-long bench lint clean help

help:
	@sed -n '1,3s/^# //p' Makefile

# install.sh reads TORCH, EXTRAS, MMCV_CUDA and TORCH_FIND_LINKS from the environment; make exports its
# command-line variables.
setup:
	@bash requirements/install.sh "$(PYTHON)" "$(VENV)"

# A synthetic data set, its info files, training from the demo weights, evaluation, pictures.
demo: setup
	@$(RUN) tools/demo.py --work-dir $(DEMO) $(if $(FROM_SCRATCH),--from-scratch)

test: setup
	@$(RUN) -m pytest $(TESTS)

# What is too slow for every run.
test-long: setup
	@$(RUN) -m pytest -m long $(TESTS)

# Every benchmark that needs no GPU; results in work_dirs/benchmarks.
bench: setup
	@for script in benchmarks/bench_*.py benchmarks/memory_model.py; do echo "$$script"; $(RUN) -W ignore $$script || exit 1; done

lint: setup
	@$(RUN) -m pip install -q -r requirements/lint.txt
	@$(RUN) -m ruff check .
	@$(RUN) -m ruff format --check .
	@$(RUN) -m mypy
	@$(RUN) -m codespell_lib README.md CONTRIBUTING.md CHANGELOG.md docs configs projects tools tests benchmarks requirements docker

clean:
	rm -rf .venv .venv-3.* .cache build *.egg-info
