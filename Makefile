.DEFAULT_GOAL := help
.PHONY: help setup run demo fmt check test bench docs lock sbom audit
LOCK = uv pip compile pyproject.toml --universal --python-version 3.11 --generate-hashes --no-config \
	--quiet --custom-compile-command "make lock" $(NEWER) --output-file

help: ## list the targets
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: ## make .venv with all that running and testing need
	./orchestrator setup

run: ## serve on port 8080
	./orchestrator

demo: ## start a server and an agent, watch one run, stop
	./orchestrator demo

fmt: setup ## format, and fix what can be fixed
	.venv/bin/python -m ruff check --fix-only --quiet .
	.venv/bin/python -m ruff format .

check: ## the gates and the unit tests, in under a minute
	./orchestrator test tests/unit tests/test_house.py

test: ## everything
	./orchestrator test

bench: ## measure
	./orchestrator bench

docs: setup ## write the generated pages
	.venv/bin/python docs/generate.py

lock: ## renew the locks (needs uv); make lock NEWER=--upgrade takes the newest
	$(LOCK) requirements.lock > /dev/null
	$(LOCK) requirements-test.lock --extra test --constraints requirements.lock > /dev/null
	$(LOCK) requirements-bench.lock --extra bench --constraints requirements-test.lock > /dev/null
	$(MAKE) sbom

sbom: setup ## write deploy/sbom.cdx.json, what the server is made of
	.venv/bin/python -m deploy.supply_chain

audit: setup ## ask OSV about every pin (needs the network)
	.venv/bin/python -m deploy.supply_chain audit
