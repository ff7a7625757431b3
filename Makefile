# make demo    train a small net on handwritten digits and print its accuracy
# make test    run the tests
# make lint    check style and types
# make proto   compile proto/caffe.proto after a change
# make docs    write docs/layers.md after a change to a layer's docstring or settings
# make bench   measure speed and memory against PyTorch and others (benchmarks/README.md)
#
# Everything happens in .venv; PYTHON=python3.12 picks another interpreter.

PYTHON ?= python3
BIN := .venv/bin
DIGITS := build/digits

.PHONY: demo test lint proto docs bench clean

demo: .venv/demo
	$(BIN)/python scripts/make_digits.py $(DIGITS)
	$(BIN)/protocaffe convert_imageset --gray --shuffle --force $(DIGITS)/train models/digits/train_lmdb
	$(BIN)/protocaffe convert_imageset --gray --shuffle --force $(DIGITS)/test models/digits/test_lmdb
	$(BIN)/protocaffe train --solver=models/digits/solver.prototxt
	$(BIN)/protocaffe test --model=models/digits/train_val.prototxt \
		--weights=models/digits/digits_iter_600.caffemodel --iterations=4 2>&1 \
		| tee $(DIGITS)/test.log
	@awk '/ accuracy = / { mean = $$NF } \
		END { printf "Test accuracy: %.1f %%\n", 100 * mean; exit mean < 0.97 }' \
		$(DIGITS)/test.log

test: .venv/test
	$(BIN)/pytest

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

proto: .venv/dev
	$(BIN)/python proto/compile.py

docs: .venv/dev
	$(BIN)/python scripts/make_layers_page.py

bench: .venv/bench
	$(BIN)/python -m benchmarks
	for question in update memory precision inference data layers; do \
		$(BIN)/python -m benchmarks.$$question || exit 1; \
	done

clean:
	rm -rf .venv build

# One stamp per extra of pyproject.toml that is installed.
.venv/demo .venv/test .venv/dev .venv/bench: .venv/%: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[$*]'
	@touch $@

$(BIN)/python:
	$(PYTHON) -m venv .venv
