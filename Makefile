# Every target sets up what it needs in .venv/, and again after a change of pyproject.toml or
# constraints.txt. It takes make and a Python with venv or pip; no Redis, Node or Docker.

# The first of these that is new enough is taken.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
ARGS =
FUZZ_SECONDS ?= 60

# In the environment, unlike as an option, constraints reach the isolated build too: up to pip 25.2
# by the first name, since then by the second.
pip_install = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517

# What the web page is built of, when Tickcast is installed: hatch_build.py.
page = hatch_build.py package.json package-lock.json \
  $(wildcard clients/dashboard/*.* clients/dashboard/feed/*.*)

.DELETE_ON_ERROR:
.PHONY: help demo test faults conformance e2e fuzz check pictures constraints clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# `exec` leaves no shell between make and the demo, so that Ctrl-C ends both quietly.
demo: .venv/.runtime ## Show it all: store, server, made-up market (ARGS="--port 9000")
	@exec .venv/bin/tickcast demo $(ARGS)

# Four at a time: two cores take them, because each test waits now and then. With ARGS="-n 0" they
# come one by one. Where bytecode were not kept, hundreds of processes would each compile all anew.
test: .venv/.dev ## Run the tests (ARGS="-k outbox")
	PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n 4 --dist worksteal $(ARGS)

# A short version of it is part of `make test`. The longest scenario soaks for half an hour.
faults: .venv/.dev ## Kill and cut everything, at length (ARGS="--faults-minutes=5 -k storm")
	.venv/bin/pytest tests/faults -s --faults=long --timeout=2700 $(ARGS)

conformance: .venv/.dev ## Hold the WebSocket server against the Autobahn cases (ARGS="-k asgi")
	.venv/bin/pytest tests/conformance -s -m conformance $(ARGS)

e2e: .venv/.e2e ## Try the web page in a real browser, Chromium
	.venv/bin/pytest tests/e2e -m e2e $(ARGS)

fuzz: .venv/.fuzz ## Feed nonsense to each parser for a minute (FUZZ_SECONDS=600 ARGS="csv line")
	.venv/bin/python -m tests.fuzz.run --seconds=$(FUZZ_SECONDS) $(ARGS)

check: .venv/.dev ## Lint, check format, types and which module imports which
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/mypy
	.venv/bin/pytest tests/test_imports.py

pictures: .venv/.runtime ## Draw docs/scenarios/*.svg again
	.venv/bin/python docs/scenarios/draw.py

# With the oldest Python: what it can install, the newer ones can too. Some packages don't come by
# themselves: what isolated builds ask for, and async-timeout, which only 3.11.0 to 3.11.2 needs.
constraints: ## Renew constraints.txt: the newest versions that fit
	rm -rf build/venv
	@$(MAKE) --no-print-directory build/venv/bin/python PYTHON=python3.11
	build/venv/bin/python -c 'import tomllib; \
	  print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	  > build/requires.txt
	build/venv/bin/python -m pip install --quiet --disable-pip-version-check --upgrade \
	  -e '.[dev,e2e,fuzz]' -r build/requires.txt editables setuptools wheel async-timeout
	build/venv/bin/python -m pip freeze --all --exclude pip --exclude-editable > build/frozen.txt
	{ grep '^#' constraints.txt; \
	  tr 'A-Z_' 'a-z-' < build/frozen.txt | LC_ALL=C sort -t = -k 1,1 | sed \
	    -e "s/^async-timeout==.*/&; python_full_version < '3.11.3'/" \
	    -e "s/^backports.zstd==.*/&; python_version < '3.14'/"; } > build/constraints.txt
	mv build/constraints.txt constraints.txt

clean: ## Remove all that was made here, .venv included
	rm -rf .venv build dist node_modules clients/dashboard/dist .coverage .hypothesis .mypy_cache .pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Four stamps, because the demo needs a third of what the tests need, and few need
# the fuzzer or what drives a browser.
.venv/.runtime: .venv/bin/python pyproject.toml constraints.txt $(page)
	@echo 'Installing Tickcast into .venv ...'
	@$(pip_install) -e .
	@touch $@

.venv/.dev: .venv/bin/python pyproject.toml constraints.txt $(page)
	@echo 'Installing Tickcast and the tools of its developers into .venv ...'
	@$(pip_install) -e '.[dev]'
	@touch .venv/.runtime $@

.venv/.e2e: .venv/bin/python pyproject.toml constraints.txt $(page)
	@echo 'Installing Tickcast, the tools of its developers and what drives a browser into .venv ...'
	@$(pip_install) -e '.[dev,e2e]'
	@touch .venv/.runtime .venv/.dev $@

.venv/.fuzz: .venv/bin/python pyproject.toml constraints.txt $(page)
	@echo 'Installing Tickcast, the tools of its developers and a fuzzer into .venv ...'
	@$(pip_install) -e '.[dev,fuzz]'
	@touch .venv/.runtime .venv/.dev $@

# Debian keeps ensurepip in a package of its own, python3-venv. Without it, a pip outside will do.
.venv/bin/python build/venv/bin/python: %/bin/python:
	@for python in $(PYTHON); do \
	  $$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && break; \
	  python=; \
	done; \
	if test -z "$$python"; then \
	  echo 'Python 3.11 or newer is needed, and none of these is: $(PYTHON)' >&2; exit 1; \
	fi; \
	rm -rf $*; \
	if $$python -c 'import ensurepip' 2>/dev/null; then \
	  $$python -m venv $*; \
	elif $$python -m pip --version >/dev/null 2>&1; then \
	  $$python -m venv --without-pip $* && $$python -m pip --python $@ install --quiet pip; \
	else \
	  echo "$$python has neither venv nor pip: apt-get install python3-venv" >&2; exit 1; \
	fi
