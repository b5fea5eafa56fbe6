# Everything here builds its own environment: Python 3.11 with venv is all that must be there.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# The suite in so many processes of one thread each: one more than there are cores on a small machine, as some tests wait.
TEST_PROCESSES ?= 3
BENCH_STAMP := $(VENV)/.bench-installed

.PHONY: demo test check docs bench clean

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -c "import sys; sys.exit('Python 3.11 or newer is needed, found ' + sys.version) if sys.version_info < (3, 11) else None"
	$(PYTHON) -m venv $(VENV)
	@echo 'Installing torch and all else into $(VENV): quiet for some minutes, once.'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[test,arviz]'
	touch $@

$(BENCH_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[bench]'
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps sbibm==1.1.0
	touch $@

demo: $(STAMP)
	$(BIN)/sbi-physics demo

test: $(STAMP)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(TEST_PROCESSES) --dist loadfile

check: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

docs: $(STAMP)
	$(BIN)/sphinx-build -W --keep-going -b html -c docs/site docs build/docs

bench: $(BENCH_STAMP)
	$(BIN)/python -m benchmarks.posterior.vs_sbi
	$(BIN)/python -m benchmarks.simulation.overhead
	$(BIN)/python -m benchmarks.simulation.programs
	$(BIN)/python -m benchmarks.flows.steps
	$(BIN)/python -m benchmarks.flows.fits
	$(BIN)/python -m benchmarks.flows.ensembles
	$(BIN)/python -m benchmarks.posterior.exact
	$(BIN)/python -m benchmarks.posterior.sbibm --methods npe nle nle-points tsnpe
	$(BIN)/python -m benchmarks.posterior.networks
	$(BIN)/python -m benchmarks.posterior.wide
	$(BIN)/python -m benchmarks.posterior.evidence
	$(BIN)/python -m benchmarks.posterior.intervals
	$(BIN)/python -m benchmarks.posterior.many
	$(BIN)/python -m benchmarks.posterior.calibration
	$(BIN)/python -m benchmarks.posterior.oscillator
	$(BIN)/python -m benchmarks.posterior.free_spectrum
	$(BIN)/python -m benchmarks.posterior.supernovae
	$(BIN)/python -m benchmarks.surrogate.calorimeter
	$(BIN)/python -m benchmarks.surrogate.galaxy
	$(BIN)/python -m benchmarks.surrogate.galaxy_peers
	$(BIN)/python -m benchmarks.surrogate.check
	$(BIN)/python -m benchmarks.anomaly.methods
	$(BIN)/python -m benchmarks.anomaly.null
	$(BIN)/python -m benchmarks.anomaly.background
	$(BIN)/python -m benchmarks.anomaly.peers
	$(BIN)/python -m benchmarks.integration.table
	$(BIN)/python -m benchmarks.integration.events
	$(BIN)/python -m benchmarks.integration.lattice
	$(BIN)/python -m benchmarks.models.known_answers
	$(BIN)/python -m benchmarks table

clean:
	rm -rf $(VENV) demo-output build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
