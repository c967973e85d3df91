# The two commands of the README, and what continuous integration adds.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install demo test lowest lint
.DEFAULT_GOAL := demo

install: $(VENV)/installed

$(VENV)/installed: pyproject.toml constraints-cpu.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e .
	touch $@

$(VENV)/tested: $(VENV)/installed
	$(BIN)/pip install --quiet --disable-pip-version-check -c constraints-cpu.txt -e ".[test,lint]"
	# The oracle of the scores; its declared dependency on torchvision is neither used nor wanted.
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps kronfluence==1.0.1 einconv==0.1.0 einops==0.8.2 opt-einsum==3.4.0
	touch $@

## install what is missing and run the whole chain on the bundled data
demo: install
	$(BIN)/frugalfm demo

## install what is missing and pass the tests
test: $(VENV)/tested
	$(BIN)/python -m pytest -n auto --dist worksteal

$(VENV)/lowest/installed: $(VENV)/tested
	grep -v -e ^transformers -e ^tokenizers constraints-cpu.txt > $(VENV)/lowest.txt
	$(BIN)/pip install --quiet --disable-pip-version-check --upgrade -c $(VENV)/lowest.txt --target $(@D) transformers==5.17.0
	touch $@

## the oldest transformers that pyproject.toml allows, on what asks most of it
lowest: $(VENV)/lowest/installed
	PYTHONPATH=$(abspath $(VENV)/lowest) $(BIN)/python -m pytest -n auto --dist worksteal tests/encoders tests/attention tests/training

## ruff and mypy
lint: $(VENV)/tested
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
