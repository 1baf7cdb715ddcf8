# make demo   see it work (no download of weights or data, no GPU)
# make test   the tests, but for the slow ones (make test-all)
# make docs   the documentation as a site, build/site
# All make .venv first, from requirements.lock.
PYTHON ?= python3
VENV   ?= .venv
BIN    := $(VENV)/bin

.PHONY: help install engines readers demo test test-all test-fast test-long coverage lint docs image-check gpu-wheels gpu-check clean
help:
	@sed -n 's/^# //p' Makefile

install: $(VENV)/.installed

$(VENV)/.installed: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(0 if sys.version_info >= (3, 11) else "vitp needs Python 3.11 or newer; name one: make PYTHON=python3.11 ...")'
	@$(PYTHON) -c 'import sys; sys.exit("Python 3.12.%d crashes while it collects garbage (docs/install.md); name another: make PYTHON=python3.13 ..." % sys.version_info[2] if (3, 12) <= sys.version_info < (3, 12, 2) else 0)'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps -e .
	@touch $@

# Ray and Snakemake, for tests/pipeline/test_engines.py: they start vitp and need not share its packages
engines: .venv-engines/.installed

.venv-engines/.installed:
	$(PYTHON) -m venv .venv-engines
	.venv-engines/bin/python -m pip install --quiet --disable-pip-version-check "ray==2.60.0" "snakemake==9.27.1"
	@touch $@

# What reads files for labeling, for tests/interop/test_labeling.py, in versions that vitp's packages do not allow
readers: .venv-readers/.installed

.venv-readers/.installed:
	$(PYTHON) -m venv .venv-readers
	.venv-readers/bin/python -m pip install --quiet --disable-pip-version-check \
	  "datumaro==1.13.12" "label-studio-converter==0.0.59"
	@touch $@

demo: install
	$(BIN)/vitp demo

PYTEST = $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadgroup

test: install
	$(PYTEST) -m "not slow"

# With the tests that take more than some seconds: real generators, engines, Slurm, kills
test-all: install
	$(PYTEST)

# What needs no second: the core on the Python of .venv; `make test-fast PYTHON=python3.13 VENV=.venv313` on another
test-fast: install
	$(PYTEST) -m "not slow and not browser and not kill" \
	  tests/postprocess/test_fusion.py tests/postprocess/test_points.py tests/execution/test_sharding.py tests/config \
	  tests/artifacts tests/metrics tests/datasets tests/cli

coverage: install
	$(PYTEST) --cov --cov-report=term:skip-covered

# 100 kills and 30 signals in every stage, 200 ends of two commands, 480 faults at steps of writes, 120,000 damaged files, all images of the parity
# tests, and eight shards on a Slurm that loses a node (some 40 minutes)
test-long: install
	VITP_EXITS=100 VITP_KILLS=100 VITP_STOPS=30 VITP_FAULTS=40 VITP_DAMAGE=1008 VITP_FUZZ=20 VITP_PARITY_IMAGES=0 VITP_CLUSTER=1 $(BIN)/python -m pytest -s \
	  tests/pipeline/test_exits.py tests/pipeline/test_restart.py tests/pipeline/test_preemption.py tests/faults tests/test_fuzz.py \
	  tests/pipeline/test_parity.py tests/pipeline/test_slurm.py

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pip check

docs: install
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs build/site
	@echo build/site/index.html

# The Dockerfile's image, built and run without a daemon; docs/container.md
image-check: install
	$(BIN)/python tools/image_check.py --debootstrap $(IMAGE_CHECK)

# What vitp needs and a machine with a GPU lacks, for its Python: make gpu-wheels GPU_PYTHON=3.12
gpu-wheels: install
	$(BIN)/python tools/gpu_wheels.py --out build/gpu-wheels $(if $(GPU_PYTHON),--python $(GPU_PYTHON))

# On that machine, which needs torch 2.11 or newer and no network; five minutes
gpu-check:
	$(PYTHON) tools/gpu_check.py --wheels build/gpu-wheels --out build/gpu.json

clean:
	rm -rf $(VENV) .venv-engines .venv-readers build dist *.egg-info
