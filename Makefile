# On a machine with nothing but Python 3.9 or newer and a package index:
#   make demo    set up, then train, evaluate and draw on a generated data set
#   make test    set up, then run the tests
# Without make: python3 tools/bootstrap.py demo (or test).
PYTHON ?= python3

.PHONY: demo test setup lint

demo test:
	$(PYTHON) tools/bootstrap.py $@

setup:
	$(PYTHON) tools/bootstrap.py

lint: setup
	.venv/bin/python -m pip install --quiet ruff
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
