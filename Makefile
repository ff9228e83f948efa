# make demo   set up, generate the embedded images, run every stage on them, print the table, say where to look
# make test   set up, run the tests: two processes of one thread each, for small tensors gain nothing from more
# make check  the tests that take no second each, no trained network and no stage in a process of its own: a minute or two
# make setup  .venv/ with everything in requirements.txt

PYTHON ?= $(shell for p in python3.12 python3.11 python3; do \
	"$$p" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 12))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin

.PHONY: demo test check lint setup clean

demo: setup
	$(BIN)/python reproduce.py --recipe demo

PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder

test: setup
	$(PYTEST)

check: setup
	$(PYTEST) -m "not slow"

lint: setup
	$(BIN)/ruff check .

setup: .venv/whole

.venv/whole: requirements.txt
	@test -n "$(PYTHON)" || { echo "Python 3.11 or 3.12 is needed: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade-strategy only-if-needed $$(grep -v -e '^#' -e pydensecrf2 requirements.txt)
	$(BIN)/pip install --quiet $$(grep pydensecrf2 requirements.txt) || \
		echo "pydensecrf2 was not built (no C++ compiler?): everything but --crf works"
	touch $@

clean:
	rm -rf .venv experiment data/critters data/critters_plain
