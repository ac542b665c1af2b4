# Every target sets up what it needs: a virtual environment in .venv with the tested versions of requirements.lock.
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 14))' 2>/dev/null && echo $$p && break; done)
BIN := .venv/bin
READY := .venv/.ready
WORKERS ?= 2
MINUTES ?= 60
TABLES := $(if $(FULL),--set data.size=128 --seeds 3 --out runs/tables-full,--small --seeds 2 --out runs/tables)
NBVAL := --nbval-lax --nbval-current-env --nbval-cell-timeout=180 --nbval-sanitize-with=notebooks/sanitise.cfg

.PHONY: demo lab test torture audit tables results lint notebooks docs lock data figures clean

demo: $(READY)  ## train on one bundled category and write a report
	$(BIN)/mlffn demo

lab: $(READY)  ## open the notebooks in JupyterLab
	$(BIN)/python -m jupyterlab --ServerApp.root_dir=. notebooks/00_start_here.ipynb

torture: $(READY)  ## an hour (MINUTES=60) of damage, faults and floods, in rounds that draw other cases each
	end=$$(($$(date +%s) + $(MINUTES) * 60)); round=1; while [ $$(date +%s) -lt $$end ]; do \
		TORTURE=$$round OMP_NUM_THREADS=1 $(BIN)/python -m pytest --timeout=3600 tests/reliability || exit 1; \
		round=$$((round + 1)); \
	done

audit: $(READY)  ## known vulnerabilities and licences of what requirements.lock pins
	$(BIN)/python tests/audit.py

test: $(READY) lint  ## lint, types, all tests, and all notebooks
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(WORKERS) $(NBVAL) notebooks

lint: $(READY)  ## style, types, who may import whom, and that what is imported is declared
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/deptry --ignore DEP002 --optional-dependencies-dev-groups dev mlffn_lite
	$(BIN)/deptry .

notebooks: $(READY)  ## write their navigation anew, execute them, keep outputs and figures
	$(BIN)/python notebooks/series.py nav
	$(BIN)/python notebooks/series.py run

docs: $(READY)  ## the site, into build/site; a link that leads nowhere fails
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --quiet
	@echo build/site/index.html

lock: $(READY)  ## resolve requirements.lock anew from pyproject.toml
	$(BIN)/pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --all-extras --upgrade \
		--custom-compile-command "make lock" --output-file requirements.lock pyproject.toml

data: $(READY)  ## draw the bundled images anew into build/miniparts
	cd notebooks && ../$(BIN)/python -m course.miniparts ../build/miniparts

figures: demo  ## the picture in the README
	mkdir -p figures && cp runs/demo/heatmaps.png figures/demo_heatmaps.png

tables: $(READY)  ## Tables 1 to 4 on the bundled images: a short training, or with FULL=1 all of the preset's
	$(BIN)/mlffn study table1 $(TABLES)
	$(BIN)/mlffn study tables $(TABLES)
	$(BIN)/mlffn report $(lastword $(TABLES))

results: $(READY)  ## tables and figures of the committed results, and the pages that show them, anew, without training
	$(BIN)/python data/results/refresh.py

clean:  ## remove what the other targets made
	rm -rf .venv build runs .pytest_cache .mypy_cache .ruff_cache .hypothesis .benchmarks

$(READY): requirements.lock pyproject.toml
	@test -n "$(PYTHON)" || { echo "mlffn-lite needs Python 3.11, 3.12 or 3.13; set PYTHON=..." >&2; exit 2; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation -e .
	@touch $(READY)
