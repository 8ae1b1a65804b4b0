# On a machine with nothing but Python 3.9 or newer and a package index:
#   make demo    set up, then train, evaluate and draw on a generated data set
#   make test    set up, then run the tests
#   make quick   set up, then run the tests that take no more than seconds
#   make lint    set up, then check style and types
# Without make: python3 tools/bootstrap.py demo (or test, quick).
PYTHON ?= python3

.PHONY: demo test quick setup lint

demo test quick:
	$(PYTHON) tools/bootstrap.py $@

setup:
	$(PYTHON) tools/bootstrap.py

lint: setup
	.venv/bin/python -m pip install --quiet mypy ruff==0.17.6
	.venv/bin/python -m ruff check .
	.venv/bin/python -m ruff format --check .
	MYPY_NUM_WORKERS=auto .venv/bin/python -m mypy
