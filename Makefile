# `make run` and `make test` are all it takes; each installs what is missing (scripts/install).
#
# ARGS is passed on: make run ARGS='--help', make test ARGS='rooms'.

# Where rustup puts cargo, for shells that were not told.
export PATH := $(PATH):$(HOME)/.cargo/bin
NEXTEST_PROFILE ?= ci
export NEXTEST_PROFILE

.PHONY: help run test check faults storm bench fuzz fmt deny

help: ## List the commands
	@sed -n 's/^\([a-z]*\):.*## /  make \1	/p' $(firstword $(MAKEFILE_LIST))

# The service replaces the shell that make started, so that it gets the signals: a terminal's Ctrl-C directly, a
# SIGTERM of make through make, which then waits for the service to end.
run: ## Build and start the service; every setting is an environment variable or in ARGS
	@scripts/install run
	@cargo build --release --locked --bin presenced
	@exec "$${CARGO_TARGET_DIR:-target}/release/presenced" $(ARGS)

# The tests come last, so that the output ends with their summary. Everything uses the dev profile, and the lints and
# the documentation share what they compile of the dependencies.
test: check ## Formatting, lints, documentation, and all tests on real servers
	@cargo nextest run --locked $(ARGS)

check: ## Formatting, lints and documentation
	@scripts/install test
	@cargo fmt --check
	@cargo clippy --locked --all-targets -- -D warnings
	@RUSTDOCFLAGS='-D warnings' cargo doc --locked --no-deps --quiet

faults: ## Rounds of faults at random instants on real servers: make faults ROUNDS=500 SEED=1 KINDS=KillRedis,CutClients ON=cluster
	@scripts/install test
	@ROUNDS='$(ROUNDS)' SEED='$(SEED)' KINDS='$(KINDS)' ON='$(ON)' cargo nextest run --locked --profile faults --run-ignored only --no-capture faults_at_random

storm: ## Half a million deadlines within a second, on the release build: make storm USERS=500000
	@scripts/install test
	@cargo build --release --locked --bin presenced
	@PRESENCE_TEST_PROGRAM="$${CARGO_TARGET_DIR:-$$PWD/target}/release/presenced" USERS='$(USERS)' \
	  cargo nextest run --locked --profile faults --run-ignored only --no-capture a_storm_of_half_a_million

# The bench profile is the release profile, and cargo builds `presenced` with what measures it. PRESENCE_TEST_PROGRAM names
# another build to be measured. `env`, because some shells count SECONDS themselves.
bench: ## Measure the service beside its bounds: make bench ONLY=heartbeat,lists ROUNDS=3 SECONDS=10 (ONLY=pure: no servers)
	@scripts/install bench
	@if [ '$(ONLY)' = pure ]; then \
	  cargo bench --locked --bench pure; \
	else \
	  env ONLY='$(ONLY)' ROUNDS='$(ROUNDS)' SECONDS='$(SECONDS)' USERS='$(USERS)' cargo bench --locked --bench service; \
	fi

# Coverage-guided, on the toolchain that builds the rest: the flags are those of SanitizerCoverage, which need no sanitizer.
# They are for the target alone; --target keeps them from build scripts.
FUZZ_FLAGS := --cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
  -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
  -Cllvm-args=-sanitizer-coverage-trace-compares -Ccodegen-units=1
TARGETS ?= tokens bodies
SECONDS_EACH ?= 60

fuzz: ## Fuzz the token parser and the request bodies: make fuzz SECONDS_EACH=600 (needs a C++ compiler)
	@host=$$(rustc -vV | sed -n 's/^host: //p'); \
	for name in $(TARGETS); do \
	  mkdir -p "fuzz/corpus/$$name" fuzz/artifacts && \
	  RUSTFLAGS='$(FUZZ_FLAGS)' cargo run --release --locked --manifest-path fuzz/Cargo.toml --target "$$host" --bin "$$name" -- \
	    -max_total_time=$(SECONDS_EACH) -max_len=4096 -artifact_prefix="fuzz/artifacts/$$name-" -print_final_stats=1 \
	    "fuzz/corpus/$$name" || exit 1; \
	done

fmt: ## Format the sources
	@cargo fmt

deny: ## Licences, sources and advisories of the dependencies: deny.toml (needs cargo install --locked cargo-deny)
	@cargo deny --locked check
