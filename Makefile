# make bench       the default suite: learning-rate grid, fresh seeds, step costs, report; twenty minutes on 2 cores
# make test        the tests to run after every change; about four minutes on 2 cores
# make test-all    every test, in more than an hour
# make check       ruff, mypy, and the order of the rooms
# make pictures   the pictures of README and of the first pages, in two minutes
# make docs        the documentation, into build/docs/html; within three minutes. A warning is an error
#
# make problems    every problem, beside a constant predictor and each task trained alone
#                  (reserved problems only with equal and static weights)
# make reference   make bench and make problems, and copies what is kept of them to results/reference
# make evidence    the evidence problem by problem, the suite tuned, and the paper's claims. Some eleven hours on
#                  2 cores; an interrupted one continues where it stopped. Copies what is kept to results/reference
# make paper       a verdict on each claim of the GradNorm paper: half an hour; FLAGS=--full for more seeds
# make bench-cost  what GradNorm and every other method add to a step: twenty minutes, with nothing else running
# make bench-peers GradNorm, the solvers and whole steps beside other implementations, in an environment of its own:
#                  some hours; FLAGS="--tasks 2" for less
# make bench-gpu   on a machine with a GPU: the balancers' tests on CUDA, what steps cost there, and the default suite.
#                  At most 8 minutes; call it again to go on. Writes results/reference/gpu
# make smoke       a small suite, in a minute
# make test-slow   the tests that `make test` leaves out
# make test-torch  every test with another PyTorch, in an environment of its own: VERSION=2.12.1 names it
# make test-peers  methods beside other people's implementations, in the environment of bench-peers
#
# Each makes its own .venv on first use. With PYTHON=/path/to/python3, that interpreter is used as it is.

VENV := .venv

ifdef PYTHON
PY := $(PYTHON)
else
PY := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.installed
endif

# The other implementations get an environment of their own, so that what they install can't break the tests.
ifdef PYTHON
PEERS_PY := $(PYTHON)
else
PEERS_PY := $(VENV)-peers/bin/python
PEERS_ENVIRONMENT := $(VENV)-peers/.installed
endif

# Two test processes, where pytest-xdist is installed. Tests that start processes of their own share one of the two.
PARALLEL = $(shell $(PY) -c "import xdist" 2>/dev/null && echo "-n 2 --dist loadgroup --no-loadscope-reorder")

# Another PyTorch gets an environment of its own too, with the same versions of everything else.
TORCH_VENV = $(VENV)-torch-$(or $(VERSION),$(error give the version of PyTorch: make test-torch VERSION=2.12.1))

.PHONY: bench problems reference evidence paper bench-cost bench-peers bench-gpu smoke test test-slow test-all \
	test-torch test-peers check docs pictures clean

bench: $(ENVIRONMENT)
	$(PY) -m bench run default
	$(PY) -m pytest bench/cost/gradient_norm.py -q --benchmark-enable --benchmark-only \
		--benchmark-json=results/default/micro.json
	$(PY) -m bench report default

test: $(ENVIRONMENT)
	$(PY) -m pytest $(PARALLEL) --sample -m "not slow and not peers"

test-slow: $(ENVIRONMENT)
	$(PY) -m pytest $(PARALLEL) --sample -m slow

test-all: $(ENVIRONMENT)
	$(PY) -m pytest $(PARALLEL) -m "not peers"

test-torch:
	$(MAKE) $(TORCH_VENV)/.installed
	$(MAKE) test-all PYTHON=$(TORCH_VENV)/bin/python

test-peers: $(PEERS_ENVIRONMENT)
	$(PEERS_PY) -m pytest tests/peers -m peers --no-skips

check: $(ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	$(PY) -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

docs: $(ENVIRONMENT)
	$(PY) -m sphinx -n -W --keep-going -b html -d build/docs/doctrees docs build/docs/html

pictures: $(ENVIRONMENT)
	$(PY) docs/pictures/draw.py

problems: $(ENVIRONMENT)
	$(PY) -m bench run all
	$(PY) -m bench run reserved

reference: bench problems
	$(call keep,default all)
	$(PY) -m bench show conflict-2d --train --out results/reference/conflict-2d.png

evidence: $(ENVIRONMENT)
	$(PY) -m bench.evidence run
	$(PY) -m bench.evidence run --reserved
	$(PY) -m bench.evidence costs
	$(PY) -m bench.evidence costs --reserved
	$(PY) -m bench.evidence tables
	$(PY) -m bench.evidence advice
	$(PY) -m bench run tuned
	$(PY) -m bench paper
	$(call keep,tuned)
	$(call keep-claims)

# Copy what is kept of suites' results: the report, what it was made by, and the tables without those of every step.
# The copy takes its place only when it is whole: if a file is missing, what was kept before stays.
define keep
	for suite in $(1); do \
		kept=results/reference/$$suite; from=results/$$suite; new=$$from/kept; \
		rm -rf $$new && mkdir -p results/reference $$new/tables $$new/figures && \
		cp $$from/report.html $$from/suite.toml $$from/environment.json $$new && \
		cp $$from/figures/summary.png $$new/figures && \
		for table in runs.csv scores.parquet baselines.csv problems.csv; do \
			cp $$from/tables/$$table $$new/tables || exit 1; \
		done && \
		for table in leaderboard metrics selection costs micro delta_m controls target repeated front; do \
			if [ -f $$from/tables/$$table.csv ]; then cp $$from/tables/$$table.csv $$new/tables || exit 1; fi; \
		done && rm -rf $$kept && mv $$new $$kept || exit 1; \
	done
endef

paper: $(ENVIRONMENT)
	$(PY) -m bench paper $(FLAGS)

# Copy what is kept of the paper's claims.
define keep-claims
	kept=results/reference/paper; from=results/paper; new=$$from/kept; \
	rm -rf $$new && mkdir -p results/reference $$new/tables $$new/figures && \
	cp $$from/report.html $$from/environment.json $$new && cp $$from/figures/claim-*.png $$new/figures && \
	for table in claims findings claim-4 claim-5 claim-6; do \
		cp $$from/tables/$$table.csv $$new/tables || exit 1; \
	done && rm -rf $$kept && mv $$new $$kept
endef

bench-cost: $(ENVIRONMENT)
	$(PY) -m bench.cost
	$(PY) -m bench.cost.method_costs

bench-peers: $(PEERS_ENVIRONMENT)
	$(PEERS_PY) -m bench.peers
	$(PEERS_PY) -m bench.peers.solver_times
	$(PEERS_PY) -m bench.peers.step_times $(FLAGS)

bench-gpu: $(ENVIRONMENT)
	$(PY) -m bench.gpu $(FLAGS)

smoke: $(ENVIRONMENT)
	$(PY) -m bench run smoke

clean:
	rm -rf $(VENV) $(VENV)-peers $(VENV)-torch-* build *.egg-info
	rm -rf docs/api docs/gallery docs/methods docs/problems docs/repository
	rm -rf .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[test,dev]'
	touch $@

$(VENV)-peers/.installed: pyproject.toml constraints.txt tests/peers/requirements.txt
	python3 -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[peers,micro]'
	$(VENV)-peers/bin/python -m pip install --quiet --no-deps --requirement tests/peers/requirements.txt
	touch $@

# The project is installed without its dependencies, so that a PyTorch older than pyproject.toml allows can be tried.
$(VENV)-torch-%/.installed: pyproject.toml constraints.txt
	python3 -m venv $(@D)
	sed 's/^torch==.*/torch==$*/' constraints.txt > $(@D)/constraints.txt
	$(@D)/bin/python -c "$$TEST_REQUIREMENTS" > $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet torch==$*
	$(@D)/bin/python -m pip install --quiet --constraint $(@D)/constraints.txt --requirement $(@D)/requirements.txt
	$(@D)/bin/python -m pip install --quiet --no-deps --editable .
	touch $@

# Print what the extra "test" requires, and the extras that it names.
define TEST_REQUIREMENTS
import re, tomllib
extras = tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]
todo, found = ["lossbench[test]"], set()
while todo:
    requirement = todo.pop()
    if own := re.match(r"lossbench\[(.*)\]", requirement):
        todo += [one for extra in own[1].split(",") for one in extras[extra]]
    else:
        found.add(requirement)
print("\n".join(sorted(found)))
endef
export TEST_REQUIREMENTS
