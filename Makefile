# make study    set everything up, then verify, measure (with a GPU), count and report
# make test     set everything up, then run the tests
PYTHON ?= python3
BIN := .venv/bin

# The CUDA extra follows the newest CUDA that the driver can run; without a driver, the newest of all.
DRIVER := $(shell nvidia-smi 2>/dev/null | sed -n 's/.*CUDA Version: *\([0-9]*\).*/\1/p')
CUDA := $(if $(filter 12,$(DRIVER)),cuda12,cuda13)

study: .venv/ready
	$(BIN)/study run

test: .venv/ready
	$(BIN)/python -m pytest

.venv/ready: pyproject.toml
	$(PYTHON) -m venv .venv
	# Without a GPU this release is a small CPU build on some machines; later ones are gigabytes.
	$(if $(DRIVER),,$(BIN)/pip install --quiet torch==2.13.0)
	$(BIN)/pip install --quiet --editable '.[$(CUDA),dev]'
	touch $@

.PHONY: study test
