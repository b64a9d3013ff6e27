# make demo   a farm on the embedded model answers real records (installs into .venv first)
# make test   everything that CI runs, on the wheel, in an environment of its own
# make check  the linters and the structure tests
# make test-lowest   the tests on the lowest versions that pyproject.toml admits (CPython 3.11), in .venv-lowest
# make lock   newest versions and their hashes into requirements-ci.txt, hashes into requirements-lowest.txt
# make dev    .venv with the farm as it stands here, and every tool
# make model  train the embedded model anew and compare with what is committed
# make bench SCENARIOS="bidding text"   measure, beside peers where a scenario names them; make bench-quick: a little of each
# make bench-check ROWS=one,forty   the farm beside its peers, judged row by row; BENCH_ARGS=--quick for a short one
# make sim SEED=n   one simulated world again, turn by turn; make sim-long HOURS=n goes through new ones
# make fuzz          bytes against every part that takes some, ten million times; FUZZ_ARGS="--seconds 60" for a short one
# make attack-liars   clients that lie, in earnest: ten minutes; ATTACK_ARGS="--seconds 5" for a short one
# make attack-sockets ATTACK_ARGS="--connections 1000000"   hostile peers on every socket of a farm, and what they cost
# make resources RESOURCES_ARGS="--count 10000 --storm-s 60"   attaches and detaches without end, then signals without end
# make chaos SEED=n   kill, stop and crash workers, clients, routers and supervisors under load; hours, or less by CHAOS_ARGS
# make soak HOURS=n   a slice of the soak, which goes on where the last one stopped (soak.json) and draws soak.png
# make mutation MODULES="shedding runs"   small changes of the deciding modules that no test notices; half an hour for all
# make clean  remove what all of these made
#
# PYTHON=/path/to/python3 picks an interpreter, PYTEST_ARGS goes to pytest.

SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.PHONY: help demo dev test test-lowest lock lint check model sim sim-long chaos soak bench bench-quick bench-check
.PHONY: attack-liars attack-sockets fuzz mutation clean resources

PIP_INSTALL := bin/python -m pip --disable-pip-version-check install --quiet
PACKAGES := farm router workers shm
SOURCES := $(shell find $(PACKAGES) -type f -not -name '*.pyc') pyproject.toml README.md LICENSE
export PYTHON

help:
	@sed -n 's/^# \(make\)/\1/p' Makefile

demo: .venv/.farm
	@.venv/bin/farm demo

dev: .venv/.dev
	@echo "ready: .venv/bin/farm, .venv/bin/python -m pytest"

# The checkout itself, editable: what is edited is what runs.
.venv/.farm: pyproject.toml tools/make_venv
	@echo "installing into .venv"
	@tools/make_venv .venv
	@.venv/$(PIP_INSTALL) --editable '.[server]'
	@touch $@

.venv/.dev: .venv/.farm requirements-ci.txt
	@.venv/$(PIP_INSTALL) --require-hashes -r requirements-ci.txt
	@touch $@

# What tests need, by version and hash; --no-deps, so that nothing comes in that is not written down.
.venv-test/.tools: requirements-ci.txt tools/make_venv
	@echo "installing into .venv-test"
	@tools/make_venv .venv-test
	@.venv-test/$(PIP_INSTALL) --no-deps --require-hashes -r requirements-ci.txt
	@touch $@

# build/ is removed first: setuptools would put modules into the wheel that are gone from the checkout.
dist/.built: .venv-test/.tools $(SOURCES)
	@rm -rf build dist
	@.venv-test/bin/python -m pip --disable-pip-version-check wheel --quiet --no-deps --no-build-isolation -w dist .
	@rm -rf build shmfarm.egg-info
	@touch $@

# --no-index: every requirement of the wheel must be among the pinned ones already.
.venv-test/.farm: dist/.built
	@.venv-test/$(PIP_INSTALL) --force-reinstall --no-deps dist/*.whl
	@.venv-test/$(PIP_INSTALL) --no-index "$$(echo dist/*.whl)[server]"
	@.venv-test/bin/python -m pip check
	@touch $@

.venv-bare/.farm: dist/.built tools/check_bare.py tools/pinned.py
	@tools/make_venv .venv-bare
	@.venv-bare/$(PIP_INSTALL) --no-deps --require-hashes -r <(.venv-bare/bin/python tools/pinned.py)
	@.venv-bare/$(PIP_INSTALL) --no-index dist/*.whl
	@.venv-bare/bin/python -I tools/check_bare.py
	@touch $@

lint: .venv-test/.tools
	.venv-test/bin/ruff check --quiet .
	.venv-test/bin/ruff format --check --quiet .
	.venv-test/bin/mypy
	.venv-test/bin/lint-imports --no-logo
	.venv-test/bin/python tools/licences.py --check

check: lint
	.venv-test/bin/python -m pytest -q tests/test_tidy.py

# PYTHONSAFEPATH keeps the checkout off sys.path, in children too; conftest makes sure of it.
test: .venv-test/.farm .venv-bare/.farm lint
	SHMFARM_TEST_INSTALLED=1 PYTHONSAFEPATH=1 .venv-test/bin/python -m pytest $(PYTEST_ARGS)

test-lowest: .venv-lowest/.farm
	SHMFARM_TEST_INSTALLED=1 PYTHONSAFEPATH=1 .venv-lowest/bin/python -m pytest $(PYTEST_ARGS)

# Where those versions have no wheel, pip builds them: a C compiler is needed.
.venv-lowest/.farm: dist/.built requirements-lowest.txt
	@PYTHON="$${PYTHON:-python3.11}" tools/make_venv .venv-lowest
	@.venv-lowest/$(PIP_INSTALL) --no-deps --require-hashes -r requirements-lowest.txt
	@.venv-lowest/$(PIP_INSTALL) --no-index "$$(echo dist/*.whl)[server,bench]"
	@.venv-lowest/bin/python -m pip check
	@touch $@

lock: .venv-lock/.tools
	.venv-lock/bin/python tools/lock.py $(LOCK_ARGS) requirements-ci.txt
	.venv-lock/bin/python tools/lock.py --keep --pythons 3.11 requirements-lowest.txt

# Not pinned: this is what finds out what there is.
.venv-lock/.tools: tools/make_venv
	@tools/make_venv .venv-lock
	@.venv-lock/$(PIP_INSTALL) --upgrade pip packaging
	@touch $@

SEED ?= 0
HOURS ?= 8

sim: .venv/.dev
	@.venv/bin/python -m tests.sim.replay $(SEED)

# From a seed that nobody has seen: the tests go through the first ones.
sim-long: .venv/.dev
	@.venv/bin/python -m tests.sim.replay --hours $(HOURS) $$(date +%s)

attack-liars: .venv/.dev
	@.venv/bin/python -m tests.attack liars $(ATTACK_ARGS)

attack-sockets: .venv/.dev
	@.venv/bin/python -m tests.attack sockets $(ATTACK_ARGS)

FUZZ_ARGS ?= --executions 10000000

fuzz: .venv/.dev
	@.venv/bin/python -m tests.fuzz all $(FUZZ_ARGS)

resources: .venv/.dev
	@.venv/bin/python -m tests.resources $(RESOURCES_ARGS)

CHAOS_ARGS ?= --workers 10000 --clients 2000 --routers 500 --supervisors 100

chaos: .venv/.dev
	@.venv/bin/python -m tests.chaos kills --seed $(SEED) $(CHAOS_ARGS)

soak: .venv/.dev
	@.venv/bin/python -m tests.chaos soak --hours $(HOURS) --state soak.json --plot soak.png $(SOAK_ARGS)

SCENARIOS ?= bidding text audio overload worker-killed

bench: .venv/.dev
	@.venv/bin/python -m bench run $(SCENARIOS) $(BENCH_ARGS)

bench-quick: .venv/.dev
	@.venv/bin/python -m bench run --quick $(BENCH_ARGS)

bench-check: .venv/.dev
	@.venv/bin/python -m bench.check $(if $(ROWS),--rows $(ROWS)) $(BENCH_ARGS)

model: .venv-train/.tools
	.venv-train/bin/python tools/train_wdbc.py --check

.venv-train/.tools: tools/requirements-train.txt tools/make_venv
	@tools/make_venv .venv-train
	@.venv-train/$(PIP_INSTALL) -r tools/requirements-train.txt
	@touch $@

# All that is needed is pinned apart: the mutation tool wants nothing of the farm's own tools.
mutation: .venv-mutation/.tools
	@nice -n 10 .venv-mutation/bin/python tools/mutate.py $(MODULES)

.venv-mutation/.tools: tools/requirements-mutation.txt tools/make_venv
	@tools/make_venv .venv-mutation
	@.venv-mutation/$(PIP_INSTALL) -r tools/requirements-mutation.txt
	@touch $@

clean:
	rm -rf .venv .venv-test .venv-bare .venv-lowest .venv-lock .venv-train .venv-mutation build dist *.egg-info
	rm -rf .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -prune -exec rm -rf {} +
