# One entry for everything a developer does. `make` alone prints the targets.
.DEFAULT_GOAL := help
.PHONY: help dev test test-faults soak demo bench bench-peers build fmt lint docs clean

help: ## Print this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

dev: ## Start a broker with a private Redis on this machine, and say what to try next
	@scripts/setup.sh redis
	cargo build --locked -p bananas-broker -p bananas
	@cargo run --quiet --locked -p bananas-broker -- dev $(ARGS)

test: ## Get the tools, then run every check and every test (PARTS="fmt cargo" for some)
	@scripts/test.sh $(PARTS)

test-faults: ## Everything that dies, breaks or is cut off (ROUNDS=3 repeats it), and the planted bugs
	@scripts/setup.sh redis
	@scripts/faults.sh --rounds $(or $(ROUNDS),1)
	@scripts/mutations.sh

soak: ## The same again and again for MINUTES (default 30), on SERVER if given (a path, or the name of one in .tools/servers)
	@scripts/setup.sh redis
	@scripts/faults.sh --minutes $(or $(MINUTES),30) $(SERVER)

demo: ## Hash a directory tree through the queue, kill a worker on the way, compare (DEMO_DIR=... for another tree)
	@scripts/setup.sh redis
	cargo build --locked -p bananas-broker -p bananas
	@scripts/demo.sh

bench: ## Measure this machine beside a plain Redis queue (release build, Python 3; ROUNDS=, OUT=, BEFORE=, or ARGS="life --duration 5s")
	@scripts/setup.sh redis
	cargo build --locked --release -p bananas-broker -p bananas -p bananas-direct
	@scripts/bench.sh $(ARGS)

bench-peers: ## Measure BullMQ, asynq and NATS JetStream beside Bananas (ARGS="--help" for what can be set)
	@scripts/setup.sh redis
	cargo build --locked --release -p bananas-broker -p bananas
	@scripts/bench-peers.sh $(ARGS)

build: ## Build everything
	cargo build --workspace --locked

fmt: ## Format Rust and Protocol Buffers
	cargo fmt --all
	@scripts/setup.sh python && .tools/venv/bin/buf format --write

lint: ## The checks without the tests
	@scripts/test.sh fmt clippy docs deny buf scripts deploy

docs: ## Build the API documentation of all crates
	RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked

clean: ## Remove what was built and downloaded
	cargo clean
	rm -rf .tools tests/node/node_modules examples/go/stream_worker/gen examples/go/stream_worker/stream_worker benches/peers/bullmq/node_modules tests/python/stubs
