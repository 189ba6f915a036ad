# Everything here installs what it lacks and reuses what is there; on a fresh Debian 12 run it as root.
.DEFAULT_GOAL := help
.PHONY: help demo demo-cluster test test-more unit check unit-compiled compiled bench docs lock clean setup image deb

PYTHON_BIN := .venv/bin
SEPARATE := test_supervised_long.py test_rounds.py test_mesh_long.py test_image.py test_deb.py test_mesh_cut.py test_mesh_secured.py test_demo_cluster.py test_gateway.py test_bench.py test_port_claims.py test_shares.py test_first_instruction.py
VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' appliance/__init__.py)
LOCK := $(PYTHON_BIN)/pip-compile --quiet --no-header --strip-extras --allow-unsafe --generate-hashes \
	--no-emit-index-url --no-emit-trusted-host --no-emit-find-links

help:  ## Show this list.
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup:  ## Install what is missing: Docker Engine, nftables, the virtual environment .venv.
	@packaging/setup.sh $(SETUP)

demo: setup  ## Deploy examples/app.py on this machine's Docker, show it at work, clean up.
	@$(PYTHON_BIN)/python examples/demo.py

demo-cluster: setup  ## The same on three machines that share a mesh through Consul; one of them dies and comes back.
	@$(PYTHON_BIN)/python examples/demo_cluster.py

test test-more: SETUP := --tests
test: setup check  ## Checks and tests, one host and three in a mesh, on Docker Engines of their own (about 15 minutes, needs root).
	@echo "make test: the tests that need no Docker run beside the others, and report at the end"
	@mkdir -p build
	@{ nice $(PYTHON_BIN)/pytest -m 'not system' $(ARGS); one=$$?; nice $(MAKE) --no-print-directory unit-compiled; test $$one$$? = 00; } \
	>build/unit-tests.log 2>&1 & unit=$$!; \
	$(PYTHON_BIN)/pytest -m system $(SEPARATE:%=--ignore=tests/system/%) $(ARGS); system=$$?; \
	wait $$unit; unit=$$?; cat build/unit-tests.log; \
	echo "make test: exit codes of pytest are $$system with Docker, $$unit without"; test $$system$$unit = 00

test-more: setup  ## The tests that take long: fifty rounds of deploy and remove, image, package, gateway, make demo-cluster, all benchmarks in brief, a control plane whose awaits fail, a machine cut off, a Consul that hangs or denies.
	@$(PYTHON_BIN)/pytest $(SEPARATE:%=tests/system/%) $(ARGS)

unit: setup  ## Only the tests that need neither root nor Docker.
	@$(PYTHON_BIN)/pytest -m 'not system' $(ARGS)

unit-compiled: compiled  ## The data plane's tests, of what is compiled.
	@PYTHONSAFEPATH=1 PYTHONPATH=$(CURDIR)/build/compiled $(PYTHON_BIN)/pytest tests/dataplane $(ARGS)

check: setup  ## Lint, formatting and types.
	@$(PYTHON_BIN)/ruff check --quiet .
	@$(PYTHON_BIN)/ruff format --quiet --check .
	@$(PYTHON_BIN)/mypy --no-error-summary

unit-compiled compiled: SETUP := --tests
compiled: setup  ## Make build/compiled: the appliance with its hot modules compiled, as image and package have it.
	@$(PYTHON_BIN)/python packaging/compile_dataplane.py --copy build/compiled

bench: setup  ## Measure, and write bench/RESULTS.md.
	@$(PYTHON_BIN)/python -m bench $(ARGS)

docs: setup  ## Write the reference pages in docs/reference from the program.
	@PYTHONPATH=$(CURDIR) $(PYTHON_BIN)/python docs/generate.py

lock: setup  ## Bring packaging/*.lock up to date with pyproject.toml.
	$(LOCK) --output-file packaging/requirements.lock pyproject.toml
	$(LOCK) --extra dev --constraint packaging/requirements.lock --output-file packaging/requirements-dev.lock pyproject.toml
	$(LOCK) --only-build-deps --build-deps-for wheel --constraint packaging/requirements-dev.lock --output-file packaging/requirements-build.lock pyproject.toml

image:  ## Build the Docker image `meshbox`; pip's settings and http_proxy come from the environment.
	@command -v docker >/dev/null || { echo "make image: needs Docker; apt-get install docker.io, or: make setup" >&2; exit 1; }
	@docker build --tag meshbox --build-arg VERSION=$(VERSION) --build-arg REVISION=$(shell git rev-parse HEAD) \
		$(foreach name,http_proxy https_proxy no_proxy PIP_INDEX_URL PIP_EXTRA_INDEX_URL PIP_TRUSTED_HOST,$(if $($(name)),--build-arg $(name))) .

deb:  ## Build the Debian package dist/meshbox_*.deb.
	@packaging/setup.sh --deb
	@packaging/deb/build.sh

clean:  ## Remove what make made here: .venv, caches, built images; and say which Debian packages it had installed.
	@[ ! -e build/installed-packages ] || \
		echo "make clean: Debian packages that make had installed stay; without them: apt-get purge --autoremove" $$(sort -u build/installed-packages)
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
