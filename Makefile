# make demo   install, make the embedded data, run the plan `demo`, print its tables
# make test   install, run the tests
# make lint   install, ruff and mypy
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV ?= .venv
BIN := $(VENV)/bin
UV := $(BIN)/uv pip install --python $(BIN)/python

# Every job is a process of its own: what it imports is compiled once, also where that is turned off.
export PYTHONDONTWRITEBYTECODE =

.PHONY: install demo test lint clean
install: $(VENV)/.installed

# Everything by pinned version; detectron2 by hash, unless the environment already has one.
$(VENV)/.installed: pyproject.toml constraints.txt overrides.txt requirements-detectron2.txt
	@$(PYTHON) -c "import sys; sys.exit(sys.version_info[:2] != (3, 11))" \
	  || { echo "bench: $(PYTHON) is not Python 3.11: run make PYTHON=/path/to/python3.11" >&2; exit 3; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet "uv>=0.9"
	$(UV) --quiet --constraints constraints.txt --overrides overrides.txt --group dev --editable .
	$(BIN)/python -c "import detectron2" 2>/dev/null || { \
	  site=$$($(BIN)/python -c "import site; print(site.getsitepackages()[0])") && $(BIN)/uv pip install --quiet --target "$$site" --python-version 3.10 --no-deps --only-binary :all: \
	    --require-hashes -r requirements-detectron2.txt \
	  && rm -rf "$$site"/detectron2/_C*.so "$$site/tools"; }
	touch $@

demo: install
	$(BIN)/bench run demo

test: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses auto --dist worksteal

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

clean:
	rm -rf build dist data runs results/tiny *.egg-info
