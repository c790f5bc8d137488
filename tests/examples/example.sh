#!/usr/bin/env bash
# Tests the example worker of one language with run.py.
#
# usage: example.sh readme|python|node|go     after setup.sh python (and node)
# exit:  3 the toolchain of the language is missing; anything else as run.py
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

protoc_gen_go_version=v1.36.12
protoc_gen_go_grpc_version=v1.6.2

language=$1
worker=()
case $language in
  readme | python) ;; # run.py starts them
  node)
    have node || { say "skipped: node is missing"; exit 3; }
    export NODE_PATH=$root/tests/node/node_modules
    worker=(node "$root/examples/node/stream_worker.js")
    ;;
  go)
    have go || { say "skipped: go is missing"; exit 3; }
    export GOBIN=$tools/bin
    [ -x "$tools/bin/protoc-gen-go" ] ||
      go install "google.golang.org/protobuf/cmd/protoc-gen-go@$protoc_gen_go_version"
    [ -x "$tools/bin/protoc-gen-go-grpc" ] ||
      go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$protoc_gen_go_grpc_version"
    # As described in the header of the example.
    cd "$root/examples/go/stream_worker"
    PATH=$venv/bin:$PATH buf generate
    go vet .
    go build -o stream_worker .
    cd "$root"
    worker=("$root/examples/go/stream_worker/stream_worker")
    ;;
  *) die "there is no example worker in $language" ;;
esac
"$root/scripts/with-broker.sh" "$venv/bin/python" "$root/tests/examples/run.py" "$language" "${worker[@]}"
