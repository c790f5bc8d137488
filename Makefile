# The commands of a developer. `make` without a target prints them.
.DEFAULT_GOAL := help
.PHONY: help dev test test-faults soak demo bench bench-peers build fmt lint docs clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## Start a broker with a private Redis on this machine, and print what to try next
	@scripts/setup.sh redis
	cargo build --locked -p bananas-broker -p bananas
	@cargo run --quiet --locked -p bananas-broker -- dev $(ARGS)

test: ## Install the tools, then run all checks and tests (PARTS="fmt cargo" for some of them)
	@scripts/test.sh $(PARTS)

test-faults: ## Run the crash and fault tests (ROUNDS=3 repeats them) and the mutation tests
	@scripts/setup.sh redis
	@scripts/faults.sh --rounds $(or $(ROUNDS),1)
	@scripts/mutations.sh

soak: ## Repeat the fault tests for MINUTES (default 30), on SERVER if set (a path or a name in .tools/servers)
	@scripts/setup.sh redis
	@scripts/faults.sh --minutes $(or $(MINUTES),30) $(SERVER)

demo: ## Hash the files of DEMO_DIR (default: this repository) through the queue, kill a worker meanwhile, compare
	@scripts/setup.sh redis
	cargo build --locked -p bananas-broker -p bananas
	@scripts/demo.sh

bench: ## Measure Bananas and a plain Redis queue (needs Python 3; ROUNDS=, OUT=, BEFORE=, or ARGS="life --duration 5s")
	@scripts/setup.sh redis
	cargo build --locked --release -p bananas-broker -p bananas -p bananas-direct
	@scripts/bench.sh $(ARGS)

bench-peers: ## Measure Bananas, BullMQ, asynq and NATS JetStream (ARGS="--help" prints the options)
	@scripts/setup.sh redis
	cargo build --locked --release -p bananas-broker -p bananas
	@scripts/bench-peers.sh $(ARGS)

build: ## Build all crates
	cargo build --workspace --locked

fmt: ## Format Rust and Protocol Buffers
	cargo fmt --all
	@scripts/setup.sh python && .tools/venv/bin/buf format --write

lint: ## Run the checks without the tests
	@scripts/test.sh fmt clippy docs deny buf spelling scripts deploy

docs: ## Build the API documentation of all crates
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

clean: ## Remove all build outputs and downloads
	cargo clean
	rm -rf .tools tests/node/node_modules tests/python/stubs benches/peers/bullmq/node_modules \
		examples/go/stream_worker/gen examples/go/stream_worker/stream_worker
