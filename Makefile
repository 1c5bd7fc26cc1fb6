# What a fresh checkout can do. Needs python3 (3.11 or newer), its venv module, and make; nothing has to be activated.
# Everything is installed into .venv, and again only when pyproject.toml, the Python or the checkout's place changes.

PYTHON ?= python3
KILLS ?= 500
EXAMPLES ?= 500
BENCH ?= full
MINUTES ?= 30
SECONDS ?= 60
WORKERS ?= 2

export PIP_DISABLE_PIP_VERSION_CHECK := 1

# A venv holds the Python's version and absolute paths, so both are part of what "installed" means.
place := $(shell { $(PYTHON) --version; pwd; } 2>&1 | cksum | cut -d ' ' -f 1)
app := .venv/app-$(place)
dev := .venv/dev-$(place)
in_venv := .venv/bin/python -m

.PHONY: help demo test check bench bench-docs kill model soak fuzz clean
.NOTPARALLEL:
.DEFAULT_GOAL := help

help: ## show this list
	@echo 'make TARGET, where TARGET is one of'
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1\t\2/p' Makefile | expand -t 14

demo: $(app) ## collect a generated market for some seconds; no network needed
	@.venv/bin/tickcollect demo

test: $(dev) ## run the tests, WORKERS=2 files at a time
	@$(in_venv) pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder

check: $(dev) ## format, lint, types
	@$(in_venv) ruff format --check .
	@$(in_venv) ruff check .
	@$(in_venv) mypy

bench: $(dev) ## measure speed, memory and delays (some minutes; BENCH=quick for less)
	@.venv/bin/python benchmarks/bench.py --size $(BENCH)

bench-docs: $(dev) ## put the results of the last `make bench` into docs/benchmarks.md
	@.venv/bin/python benchmarks/report.py

kill: $(dev) ## kill collector and uploader at random moments, KILLS=500 times
	@KILLS=$(KILLS) $(in_venv) pytest --timeout 3600 tests/test_segments_kill.py tests/test_kill.py tests/test_soak.py \
		tests/test_upload_kill.py -k kill
	@FAULT_POINTS=all $(in_venv) pytest --timeout 3600 tests/test_fault_points.py tests/test_upload_faults.py

model: $(dev) ## play EXAMPLES=500 random histories of rows, files, kills and power failures
	@EXAMPLES=$(EXAMPLES) $(in_venv) pytest --timeout 3600 tests/test_model.py

soak: $(dev) ## collect through random faults, MINUTES=30 long; SEED=7 for the same faults again
	@$(in_venv) tests.soak --minutes $(MINUTES) $(if $(SEED),--seed $(SEED))

fuzz: $(dev) ## fuzz what comes from outside, SECONDS=60 for each target
	@.venv/bin/python -c 'import atheris' 2>/dev/null || $(in_venv) pip install --quiet 'atheris>=2.3'
	@for target in frames salvage journal config; do \
		$(in_venv) tests.fuzz $$target --seconds $(SECONDS) $(if $(SEED),--seed $(SEED)) || exit 1; done

clean: ## remove what this Makefile has made
	rm -rf .venv .mypy_cache .pytest_cache .ruff_cache .hypothesis .bench dist
	find tickcollect tests benchmarks -name __pycache__ -prune -exec rm -rf {} +

# Python and its modules are looked at before pip is, so that what is missing is said in one line.
define install
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	echo 'tickcollect needs Python 3.11 or newer, and $(PYTHON) is' "$$($(PYTHON) --version 2>&1)." \
	'Name a newer one: make PYTHON=python3.12 ...' >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	echo 'Python cannot make virtual environments here. On Debian and Ubuntu: apt-get install python3-venv' >&2; exit 1; }
@echo 'Installing into .venv; this takes about a minute.' >&2
@rm -f .venv/app-* .venv/dev-*
@$(PYTHON) -m venv .venv
@$(in_venv) pip install --quiet --editable '$(1)'
@touch $@
endef

$(app): pyproject.toml
	$(call install,.)

$(dev): pyproject.toml
	$(call install,.[dev])
	@touch $(app)
