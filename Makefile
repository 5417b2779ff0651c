# make demo / make test / make lint set up .venv themselves; they need Python 3.10 or newer, pip and the registry.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: demo test lint format bench clean

demo: $(STAMP)
	$(BIN)/everyframe demo --out demo

# Three processes with a thread each on two cores: clusters, browsers and what is killed wait more than they work. In the
# order of names: by their number of tests the longest files, which have few, would come last, one process alone. Where
# Python is told not to write its bytecode, each process would compile hundreds of modules anew: here it may.
test: $(STAMP)
	PYTHONDONTWRITEBYTECODE= OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python scripts/render_results.py --check

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(STAMP)
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/compare_peers.py
	$(BIN)/python benchmarks/performance.py
	$(BIN)/python benchmarks/scaling.py
	$(BIN)/python benchmarks/decode.py --out benchmarks/results/decode.json
	$(BIN)/python benchmarks/threads.py
	$(BIN)/python benchmarks/startup.py --footprint
	$(BIN)/python benchmarks/parallel_files.py
	$(BIN)/python benchmarks/paths.py
	$(BIN)/python benchmarks/memory.py --out benchmarks/results/memory.json
	$(BIN)/python benchmarks/memory.py --encode --out benchmarks/results/memory_encode.json
	$(BIN)/python benchmarks/bundled.py
	$(BIN)/python benchmarks/reuse_variants.py --videos 3 --seconds 40
	$(BIN)/python benchmarks/adaptive.py --videos 3
	$(BIN)/python benchmarks/adaptive_speed.py --rounds 3
	$(BIN)/python benchmarks/fidelity.py
	$(BIN)/python benchmarks/real_change.py
	$(BIN)/python benchmarks/recipe.py
	$(BIN)/python benchmarks/merging.py --out benchmarks/results/merging.json
	$(BIN)/python benchmarks/merging_quality.py
	$(BIN)/python benchmarks/retrieval.py --out benchmarks/results/retrieval.json
	$(BIN)/python benchmarks/sequences.py
	$(BIN)/python benchmarks/grounding.py scorers --out benchmarks/results/grounding.json
	$(BIN)/python benchmarks/localization.py --seeds 3
	$(BIN)/python benchmarks/scale.py
	$(BIN)/python benchmarks/scale_chaos.py --out benchmarks/results/scale_chaos.json
	$(BIN)/everyframe evaluate synthetic --all --workers 2 --out work/results
	cp work/results/results.json benchmarks/results/tasks.json
	$(BIN)/everyframe demo --out demo --json > benchmarks/results/demo.json
	$(BIN)/python scripts/render_results.py

$(STAMP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade "pip>=25.1"
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --group dev --editable ".[all]"
	touch $(STAMP)

clean:
	rm -rf $(VENV) demo build dist
