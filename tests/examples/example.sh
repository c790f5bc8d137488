#!/usr/bin/env bash
# Runs the worker of one language that readers are sent to through run.py.
#
# usage: example.sh readme|python|node|go     after setup.sh python (and node)
# exit:  3 the language's toolchain is absent; anything else as run.py
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../../scripts/lib.sh"

protoc_gen_go_version=v1.36.12
protoc_gen_go_grpc_version=v1.6.2

language=$1
worker=()
case $language in
  readme | python) ;; # run.py knows them
  node)
    have node || { say "skipped: node is absent"; exit 3; }
    export NODE_PATH=$root/tests/node/node_modules
    worker=(node "$root/examples/node/stream_worker.js")
    ;;
  go)
    have go || { say "skipped: go is absent"; exit 3; }
    [ -x "$tools/bin/protoc-gen-go" ] || GOBIN=$tools/bin go install "google.golang.org/protobuf/cmd/protoc-gen-go@$protoc_gen_go_version"
    [ -x "$tools/bin/protoc-gen-go-grpc" ] ||
      GOBIN=$tools/bin go install "google.golang.org/grpc/cmd/protoc-gen-go-grpc@$protoc_gen_go_grpc_version"
    # The command of the example's own header.
    (cd "$root/examples/go/stream_worker" && PATH=$venv/bin:$PATH buf generate && go vet . && go build -o stream_worker .)
    worker=("$root/examples/go/stream_worker/stream_worker")
    ;;
  *) die "there is no worker in $language" ;;
esac
"$root/scripts/with-broker.sh" "$venv/bin/python" "$root/tests/examples/run.py" "$language" "${worker[@]}"
