# Every target installs what it needs into .venv/, and again after pyproject.toml or constraints.txt
# has changed. You need make and a Python with venv or pip, but no Redis, Node or Docker.

# The first of these that is new enough is used.
PYTHON ?= python3 python3.14 python3.13 python3.12 python3.11
ARGS =
FUZZ_SECONDS ?= 60

# Constraints in the environment, unlike those given as an option, also apply to the isolated build:
# pip up to 25.2 reads the first variable, later versions the second.
pip_install = PIP_CONSTRAINT=constraints.txt PIP_BUILD_CONSTRAINT=constraints.txt \
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --use-pep517

# The sources of the web page, which hatch_build.py builds when Tickcast is installed.
page = hatch_build.py package.json package-lock.json \
  $(wildcard clients/dashboard/*.* clients/dashboard/feed/*.*)

# Their faults are simulated, in as many random orders as the profile of Hypothesis asks for.
state_machines = tests/feed/test_accounts.py tests/tickcast/client/test_client_and_server.py

.DELETE_ON_ERROR:
.PHONY: help demo test faults conformance e2e fuzz check pictures constraints clean

help: ## List these targets
	@awk -F ':.*## ' '/^[a-z0-9]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' Makefile

# `exec` leaves no shell between make and the demo, so that Ctrl-C ends both quietly.
demo: .venv/.runtime ## Show it all: store, server, made-up market (ARGS="--port 9000")
	@exec .venv/bin/tickcast demo $(ARGS)

# Six tests run in parallel. Two cores can handle them, because each test spends time waiting.
# ARGS="-n 0" runs them one by one. Bytecode is kept: without it, each of hundreds of processes
# would compile everything again.
test: .venv/.dev ## Run the tests (ARGS="-k outbox")
	PYTHONDONTWRITEBYTECODE= .venv/bin/pytest -n 6 --dist worksteal $(ARGS)

# `make test` runs a short version of these. The longest scenario is a soak test of half an hour.
faults: .venv/.dev ## Kill and cut everything, at length (ARGS="--faults-minutes=5 -k storm")
	.venv/bin/pytest tests/faults $(state_machines) -s --faults=long --hypothesis-profile=thorough \
	  --timeout=2700 $(ARGS)

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

# Uses the oldest Python, because newer ones can install the same versions. Some packages must be
# named: the requirements of isolated builds, and async-timeout, which only 3.11.0 to 3.11.2 needs.
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

# There are four stamps, because the demo needs only a third of what the tests need, and few people
# need the fuzzer or the browser driver.
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

# On Debian, ensurepip is in a separate package, python3-venv. Without it, use the system's pip.
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
