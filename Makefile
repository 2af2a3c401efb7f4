# All commands; CI uses the same targets. `make` without a target lists them.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

PYTHON ?= python3
# Additional arguments of a command. It is reset here because shell variables named ARGS, or HOST and USERS below, may have another meaning.
ARGS =
VENV := .venv
BIN := $(VENV)/bin
# uv builds the environments: the uv on PATH, or else one that pip installs into the project.
UV := $(shell command -v uv || echo .cache/uv/bin/uv)
export UV_PYTHON_DOWNLOADS := never
export UV_LINK_MODE := copy

# part new
##@ Make it yours
NAME =
NOUN =
PLURAL =
DIR =
WITHOUT =
WITH =
.PHONY: new new-test
new: $(VENV)/.lint  ## create your own service in a new folder: NAME=orders NOUN=order [PLURAL=…] [DIR=../orders] [WITHOUT="k8s azure argocd loadtest drills compose"] [WITH=adoption]
	@$(BIN)/python -m tools.new --name "$(NAME)" --noun "$(NOUN)" --plural "$(PLURAL)" --dir "$(DIR)" --without "$(WITHOUT)" --with "$(WITH)"

new-test: $(VENV)/.lint  ## create three services with different names and parts, and run their checks and tests (ARGS="-k small" for one of them)
	$(BIN)/python -m pytest tests/new --timeout 1200 $(ARGS)

# end new
##@ Run
.PHONY: up dev migrate
up: $(VENV)/.local  ## serve the page on 127.0.0.1:8080 and the ops port 9464, with PostgreSQL 18 from a wheel (or your server: DB_HOST=…)
	@exec $(BIN)/python -m goals up

dev: $(VENV)/.local  ## like `up`, but restart whenever code or a template changes
	@exec $(BIN)/python -m tools.dev

migrate: $(VENV)/.local  ## upgrade the database schema (of the embedded server if DB_HOST is unset); ARGS=--dry-run only checks
	@echo "migrating the database of $${DB_HOST:-the embedded PostgreSQL}"
	@$(BIN)/python -m goals migrate $(ARGS)

##@ Develop
.PHONY: check fix test lock
check: $(VENV)/.lint  ## ruff, format, mypy strict, import-linter; shellcheck, hadolint, actionlint, zizmor; terms and spelling
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	cd alembic && ../$(BIN)/mypy --config-file ../pyproject.toml env.py versions
	$(BIN)/lint-imports
	git grep -lE '^#!.*\bsh$$|^#!.*\bbash$$' | xargs $(BIN)/shellcheck --external-sources
	git ls-files '*Dockerfile' | xargs $(BIN)/hadolint
	$(BIN)/actionlint -shellcheck $(BIN)/shellcheck
	$(BIN)/zizmor --offline --pedantic --quiet .github
	$(BIN)/python -m tools.terms
	git ls-files -z | xargs -0 $(BIN)/codespell
	$(BIN)/pytest --quiet tests/lint

fix: $(VENV)/.lint  ## fix what ruff can fix, and format
	$(BIN)/ruff check --fix --exit-zero .
	$(BIN)/ruff format .

WORKERS ?= 3  # some tests wait, so two cores can serve three workers
test: $(VENV)/.dev  ## test the service, the load test and the tools on a real PostgreSQL 18, with branch coverage; CONTRIBUTING.md lists the other suites
	$(BIN)/coverage erase
	$(BIN)/coverage run -m pytest --numprocesses $(WORKERS) --dist worksteal $(ARGS)
	$(BIN)/coverage combine --quiet
	$(BIN)/coverage report $(if $(ARGS),--fail-under=0)

lock: $(UV)  ## resolve the dependencies into requirements/*.txt (hashes, no hosts)
	$(LOCK) --group otlp -o requirements/goals.txt
	$(LOCK) -c requirements/goals.txt --group otlp --group embedded -o requirements/local.txt
	$(LOCK) -c requirements/local.txt --group otlp --group embedded --group dev -o requirements/dev.txt
	$(LOCK_GROUP) -c requirements/dev.txt --group lint -o requirements/lint.txt
# part loadtest
	$(LOCK_GROUP) -c requirements/dev.txt --group loadtest -o requirements/loadtest.txt
	$(LOCK_GROUP) --group parity -o requirements/parity.txt
# end loadtest
# part compose
	$(LOCK_GROUP) --group sbom -o requirements/sbom.txt
# end compose
	$(LOCK_GROUP) requirements/uv.in -o requirements/uv.txt
LOCK_GROUP = $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --custom-compile-command 'make lock' $(LOCK_ARGS)
LOCK = $(LOCK_GROUP) pyproject.toml

# part loadtest
##@ Measure
.PHONY: bench flood growth groups
ROUNDS ?= 7
SECONDS ?= 2
bench: $(VENV)/.dev .cache/bench/.goals  ## measure speed relative to bare Hypercorn, the cost of a request, start time and memory (needs wrk; ROUNDS=7 SECONDS=2); writes out/bench.json and out/bench.html
	@$(BIN)/python -m bench --python .cache/bench/bin/python --rounds $(ROUNDS) --seconds $(SECONDS)

growth: $(VENV)/.dev .cache/bench/.goals  ## compare the same requests with a million goals and with ten million (5 minutes); writes out/growth.json
	@$(BIN)/python -m bench.growth --python .cache/bench/bin/python $(ARGS)

groups: $(VENV)/.dev  ## measure adds with 1, 2, 4 and 10 concurrent statements, and with one statement for each add (2 minutes; needs wrk)
	@$(BIN)/python -m bench.groups

flood: $(VENV)/.dev .cache/bench/.goals  ## measure what honest clients see while thousands of hostile ones send without reading, only connect, or send junk (7 minutes)
	@echo "flooding the service, half a minute for each kind of client"
	@$(BIN)/python -m bench.flood --python .cache/bench/bin/python $(ARGS)

# Contains only what the image contains: the tools' libraries would affect the service's start time and memory.
.cache/bench/.goals: requirements/goals.txt $(UV)
	@echo "installing $< into .cache/bench"
	@$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" .cache/bench
	@$(UV) pip sync --quiet --python .cache/bench/bin/python --require-hashes --compile-bytecode $<
	@$(INSTALL_GOALS) --python .cache/bench/bin/python
	@touch $@
# end loadtest

##@ Browser
.PHONY: e2e screenshots
e2e: $(VENV)/.dev  ## test the page in the Chromium or Chrome on the PATH (Debian: apt-get install chromium)
	$(BIN)/pytest tests/e2e $(ARGS)

screenshots: $(VENV)/.dev  ## retake the screenshots in docs/img/, including those of the reports in out/ (install fonts-noto-core first, for desktop-like fonts)
	@echo "taking screenshots into docs/img"
	@$(BIN)/python -m tests.e2e.screenshots

##@ Observe
.PHONY: observability slo
observability: $(VENV)/.dev observability/node_modules/.made  ## test every rule, panel, metric and alert with promtool, Prometheus, Grafana's types and the service
	@for tool in promtool prometheus; do command -v $$tool >/dev/null || { echo "error: there is no $$tool on the PATH: install it first (Debian and Ubuntu: apt-get install prometheus)" >&2; exit 1; }; done
	$(BIN)/python -m pytest tests/observability $(ARGS)
	@cat out/observability.json
	$(BIN)/python -m tests.observability.cost

slo: $(VENV)/.dev  ## generate the rules and dashboards from observability/slo.toml and the code
	@$(BIN)/python -m observability.generate

observability/node_modules/.made: observability/package-lock.json
	@for tool in node npm; do command -v $$tool >/dev/null || { echo "error: there is no $$tool on the PATH: install it first (Debian and Ubuntu: apt-get install nodejs npm)" >&2; exit 1; }; done
	@echo "installing observability/package-lock.json into observability/node_modules"
	@cd observability && npm ci --silent
	@touch $@

# part loadtest
##@ Load test
.PHONY: load load-ui load-test parity
SCENARIO = original
HOST = http://127.0.0.1:8080
USERS =
WHAT = $(if $(USERS),--locustfile $(USERS),--scenario $(SCENARIO))
load: $(VENV)/.loadtest  ## run SCENARIO (original, smoke, browse, ramp, spike, soak, breakpoint), or the Python file USERS, against HOST; reports in out/load/
	$(BIN)/locust --headless $(WHAT) --host $(HOST) $(ARGS)

load-ui: $(VENV)/.loadtest  ## serve the web UI on 127.0.0.1:8089: choose a scenario, start it, watch it, read the verdict
	@$(BIN)/locust $(WHAT) --host $(HOST) $(ARGS)

load-test: export SOAK := $(or $(SOAK),20)
load-test: $(VENV)/.dev  ## test the load test itself against a scripted server: protocol, verdicts, stall, processes, soak (3 minutes; SOAK=60 is the full soak)
	$(BIN)/python -m pytest tests/loadtest/live $(ARGS)

parity: $(VENV)/.parity  ## compare k6 and Locust, alternating on the same targets (needs nginx, 5 minutes); figures in out/parity/
	$(BIN)/python -m bench.parity.compare $(ARGS)
# end loadtest

# part drills
##@ Drills
.PHONY: drill drills drills-short
DRILL ?= failover
drill: $(VENV)/.dev  ## run DRILL (failover, grey, rollout, overload, migration, widen, rotation, stuck, restore, major), which injects faults under load; reports in out/drills/ (1 to 20 minutes)
	@$(BIN)/python -m drills $(DRILL) $(ARGS)

drills: $(VENV)/.dev  ## run all drills in full (under 45 minutes)
	@$(BIN)/python -m drills $(ARGS)

drills-short: $(VENV)/.dev  ## run a short form of all drills, with faults at the same times in every run (7 minutes)
	@$(BIN)/python -m drills --short --seed 1 --out out/drills/short $(ARGS)
# end drills

# part k8s
##@ Kubernetes
.PHONY: k8s k8s-mutants cluster-up cluster-down crds platform-sums
k8s k8s-mutants crds: export CRDS := $(abspath $(or $(CRDS),.cache/crds))
k8s: $(VENV)/.dev  ## render every overlay and component, check them against the pinned Kubernetes version and CRDs; test the scripts
	@command -v kubectl >/dev/null || { echo "error: kubectl renders the manifests; install it: https://kubernetes.io/docs/tasks/tools/" >&2; exit 1; }
	@command -v shellcheck >/dev/null || { echo "error: shellcheck checks the scripts; install it (Debian and Ubuntu: apt-get install shellcheck)" >&2; exit 1; }
	@[ -x /usr/sbin/nginx ] || command -v nginx >/dev/null || { echo "error: nginx serves both gateways' configurations; install it (Debian and Ubuntu: apt-get install nginx-light)" >&2; exit 1; }
	$(BIN)/python -m tools.lint
	$(BIN)/python -m pytest -q -rs tests/k8s

k8s-mutants: $(VENV)/.dev  ## break a copy of the manifests in every way that a rule should catch, and check that the rule catches it
	@command -v kubectl >/dev/null || { echo "error: kubectl renders the manifests; install it: https://kubernetes.io/docs/tasks/tools/" >&2; exit 1; }
	$(BIN)/python -m tests.k8s.mutants

cluster-up:  ## create the whole site in kind on this machine, step by step (needs Docker, kind, kubectl, helm); SITE=no stops before the site
	@SITE=$(SITE) k8s/kind/create.sh $(ARGS)

cluster-down:  ## delete the cluster that cluster-up created, and no other
	@k8s/kind/delete.sh

# part drills
.PHONY: cluster-images cluster-test
cluster-test: export CRDS := $(abspath $(or $(CRDS),.cache/crds))
cluster-images: image  ## build what a cluster test runs: the images, and a database with TLS that replaces CloudNativePG's
	docker build --quiet --tag goals-standin:$(TAG) tests/cluster/standin

cluster-test: $(VENV)/.dev  ## test the site on the cluster that CLUSTER_CONTEXT names (default kind-goals; any other also needs CONFIRM_CONTEXT); SHORT=1, NEED=all
	@command -v kubectl >/dev/null || { echo "error: kubectl connects to the cluster; install it: https://kubernetes.io/docs/tasks/tools/" >&2; exit 1; }
	$(BIN)/python -m pytest tests/cluster --quiet --capture no --timeout 1500 $(ARGS)
# end drills

crds: $(VENV)/.dev  ## fetch the pinned operators' CRDs from their releases into .cache/crds, or the folder that CRDS names
	$(BIN)/python -m tools.lint.crds

platform-sums:  ## fetch what the platform installs, record each checksum the first time and compare it from then on
	k8s/platform/sums.sh
# end k8s

##@ Containers
.PHONY: image
TAG ?= dev
IMAGES := goals goals-loadtest goals-setup
export TAG
# Metadata of the images, including their date.
image compose-up compose-test: export VERSION = $(shell sed -n 's/^__version__ = "\(.*\)"/\1/p' services/goals/__init__.py)
image compose-up compose-test: export REVISION = $(shell git describe --always --abbrev=40 --dirty --exclude='*' 2>/dev/null || echo unknown)
image compose-up compose-test: export SOURCE_DATE_EPOCH = $(shell git log -1 --format=%ct 2>/dev/null || echo 0)
image compose-up compose-test: export CREATED = $(shell TZ=UTC git log -1 --date=iso-strict-local --format=%cd 2>/dev/null || echo 1970-01-01T00:00:00Z)
NEED_DOCKER = @docker compose version >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 && docker info >/dev/null 2>&1 || { \
  echo "error: this needs a running Docker Engine (25 or newer) with Compose and buildx: https://docs.docker.com/engine/install/" >&2; exit 1; }

image:  ## build the images (needs Docker)
	$(NEED_DOCKER)
	docker compose build goals setup
# part loadtest
	docker compose --profile load build locust-master
# end loadtest

# part compose
.PHONY: compose-up compose-down compose-restart compose-test sbom
compose-up: image  ## start everything on this machine: https://localhost:8443, Prometheus 9090, Alertmanager 9093, Grafana 3000
	docker compose up --detach --wait $(ARGS)

compose-down:  ## stop and remove these containers and nothing else; the data stays (ARGS=--volumes removes it too)
	$(NEED_DOCKER)
	docker compose --profile '*' down --remove-orphans $(ARGS)

compose-restart:  ## restart the replicas one after another, without failing a request
	$(NEED_DOCKER)
	for replica in $$(docker compose ps --quiet goals); do \
	  docker restart "$$replica" && docker compose up --detach --wait --no-deps --no-recreate goals || exit 1; done

compose-test: $(VENV)/.dev image  ## test the images and compose.yaml in a separate Compose project (5 minutes)
	$(BIN)/python -m pytest tests/compose $(ARGS)

sbom: image  ## list what is installed in each image, as CycloneDX, in out/sbom/
	for image in $(IMAGES); do \
	  docker buildx build --quiet --file compose/sbom/Dockerfile --build-arg IMAGE=$$image:$(TAG) --output out/sbom/$$image . || exit 1; done
	@ls out/sbom/*/sbom.json
# end compose

##@ Clean
.PHONY: clean clean-data
clean:  ## remove everything that `make` has generated (.data/ stays: it contains your goals)
	rm -rf $(VENV) .cache out .coverage .coverage.* .mypy_cache alembic/.mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis .schemathesis observability/node_modules uv.lock
	find . -path ./.data -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

clean-data:  ## remove the embedded server's data, including your goals; refused while it runs
	@[ ! -e .data ] || $(PYTHON) -c "$$REMOVE_DATA"

define REMOVE_DATA
import fcntl, shutil, sys
try:
    users = open(".data/users.lock", "a")
    fcntl.flock(users, fcntl.LOCK_EX | fcntl.LOCK_NB)
    shutil.rmtree(".data")
except BlockingIOError:
    sys.exit("error: the embedded server's data is in use: stop `make up` and the tests first")
except OSError as error:
    sys.exit(f"error: cannot remove {error.filename} ({error.strerror}): run this as the account that created it")
endef
export REMOVE_DATA

##@ Deliver
.PHONY: docs-test audit wheels versions licences actions-pin release-notes help
docs-test: $(VENV)/.dev  ## check the documents against the code and each program's help; run the runnable blocks
	$(BIN)/python -m pytest tests/test_docs.py tests/docs $(ARGS)

audit: $(VENV)/.dev  ## report known vulnerabilities of the locked packages, from osv.dev; warn if it cannot be reached
	@$(BIN)/python -m tools.audit $(ARGS)

wheels: $(VENV)/.dev  ## check that up, test and load install only wheels, on Linux, Apple Silicon and every supported Python
	@echo "querying the package index for the wheels of each lock, platform and Python"
	@$(BIN)/python -m tools.wheels $(UV)

versions: $(VENV)/.dev  ## list every pinned chart, release, image and action with its age; fail if support has ended or a vulnerability affects us
	@$(BIN)/python -m tools.versions $(ARGS)

licences: $(VENV)/.dev  ## list the licence of each package in the images; fail if one has not been considered
	@$(BIN)/python -m tools.licences

actions-pin: $(VENV)/.dev  ## pin the workflows' actions to the commits that their versions currently point to
	@echo "querying GitHub for the commits of the workflows' actions"
	@$(BIN)/python -m tools.pins

release-notes:  ## print the notes of the newest version's release, from the changelog (or VERSION=1.2.3)
	@$(PYTHON) -m tools.release notes $(VERSION)

# part azure
.PHONY: site-images
site-images: $(VENV)/.dev  ## put the images GOALS and LOADTEST, each REGISTRY/NAME:VERSION@sha256:DIGEST, into the site
	@$(BIN)/python -m tools.release images "$(GOALS)" "$(LOADTEST)"
# end azure

help:
	@awk 'BEGIN {FS = ":.*## "} /^##@ / {printf "\n%s\n", substr($$0, 5)} /^[a-z0-9-]+:.*## / {printf "  %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

NEED_PYTHON = @$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
  echo "error: $(PYTHON) is not Python 3.11 or newer: install one and name it, as in \`make up PYTHON=python3.13\`" >&2; exit 1; }

# The environments: `.local` runs the product, `.dev` adds the tools; a changed lock file reinstalls them.
.cache/uv/bin/uv: requirements/uv.txt
	$(NEED_PYTHON)
	@$(PYTHON) -m pip --version >/dev/null 2>&1 || { echo "error: $(PYTHON) has no pip, which installs uv: install it first (Debian and Ubuntu: apt-get install python3-pip)" >&2; exit 1; }
	@echo "installing uv into .cache/uv"
	@$(PYTHON) -m pip install --quiet --disable-pip-version-check --root-user-action=ignore --require-hashes --upgrade --target .cache/uv -r $< && touch $@

# The project itself, editable: uv contains the build backend, so nothing is downloaded.
INSTALL_GOALS = $(UV) pip install --quiet --offline --no-deps --editable .

$(VENV)/.local: requirements/local.txt pyproject.toml $(UV)
	$(NEED_PYTHON)
	@echo "installing $< into $(VENV)"
	@$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r $<
	@$(INSTALL_GOALS) --python $(BIN)/python
# As root, PostgreSQL runs as another account, which must be able to read the environment whatever the umask is, or was
# when uv filled its cache.
	@chmod -R go+rX $(VENV)
	@touch $@

$(VENV)/.dev: requirements/dev.txt $(VENV)/.local $(UV)
	@echo "installing $< into $(VENV)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r $<
	@touch $@

# Programs that only `make check` runs: if one is not available for a platform, the tests still run there.
$(VENV)/.lint: requirements/lint.txt $(VENV)/.dev
	@echo "installing $< into $(VENV)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r $<
	@touch $@

# part loadtest
$(VENV)/.loadtest: requirements/loadtest.txt $(UV)
	$(NEED_PYTHON)
	@echo "installing $< into $(VENV)"
	@$(UV) venv --quiet --allow-existing --python "$$(command -v $(PYTHON))" $(VENV)
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r $<
	@touch $@

$(VENV)/.parity: requirements/parity.txt $(VENV)/.dev
	@echo "installing $< into $(VENV)"
	@$(UV) pip install --quiet --python $(BIN)/python --require-hashes -r $<
	@touch $@
# end loadtest
