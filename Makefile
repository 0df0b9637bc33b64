# make bench       the default suite: learning-rate grid, fresh seeds, step costs, report
# make reference   the same, and what of it is kept in results/reference
# make bench-cost  what GradNorm and every other method add to a step; a quarter of an hour, nothing else running
# make bench-peers GradNorm and the solvers beside other implementations, in an environment of its own
# make test        the tests
# make check       ruff and mypy
#
# Each makes its own .venv on first use. With PYTHON=/path/to/python3, that interpreter is used as it is.

VENV := .venv

ifdef PYTHON
PY := $(PYTHON)
else
PY := $(VENV)/bin/python
ENVIRONMENT := $(VENV)/.installed
endif

# Beside other packages, in an environment that they can't break for the tests.
ifdef PYTHON
PEERS_PY := $(PYTHON)
else
PEERS_PY := $(VENV)-peers/bin/python
PEERS_ENVIRONMENT := $(VENV)-peers/.installed
endif

.PHONY: bench reference bench-cost bench-peers smoke test check clean

bench: $(ENVIRONMENT)
	$(PY) -m bench run default
	$(PY) -m pytest bench/cost/gradient_norm.py -q --benchmark-enable --benchmark-only \
		--benchmark-json=results/default/micro.json
	$(PY) -m bench report default

reference: bench
	rm -rf results/reference/default
	mkdir -p results/reference/default/tables results/reference/default/figures
	cd results/default && cp report.html suite.toml environment.json ../reference/default
	cd results/default && cp figures/summary.png ../reference/default/figures
	cd results/default/tables && cp runs.csv scores.csv selection.csv costs.csv micro.csv ../../reference/default/tables

bench-cost: $(ENVIRONMENT)
	$(PY) -m bench.cost
	$(PY) -m bench.cost.methods

bench-peers: $(PEERS_ENVIRONMENT)
	$(PEERS_PY) -m bench.peers
	$(PEERS_PY) -m bench.peers.solvers

smoke: $(ENVIRONMENT)
	$(PY) -m bench run smoke

test: $(ENVIRONMENT)
	$(PY) -m pytest

check: $(ENVIRONMENT)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

clean:
	rm -rf $(VENV) $(VENV)-peers build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[data,test,dev]'
	touch $@

$(VENV)-peers/.installed: pyproject.toml constraints.txt
	python3 -m venv $(VENV)-peers
	$(VENV)-peers/bin/python -m pip install --quiet --constraint constraints.txt --editable '.[peers]'
	touch $@
