#!/usr/bin/env bash
# Runs every check and every test, goes on after a failure, and closes with a table and the totals.
#
# usage: test.sh [PART...]    only these parts (names as in the table); without any: all
# A part whose toolchain is absent is skipped; with CI set a skip is a failure.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1

logs=$(target_dir)/test-logs
mkdir -p "$logs"
only=" $* "
table=()
passed=0
failed=0
skipped=0
broken=0

# part NAME COMMAND...: runs it, shows its output, and counts the tests that it reports.
part() {
  local name=$1 log start rc result p f
  shift
  [ "$only" = "  " ] || [[ $only == *" $name "* ]] || return 0
  log=$logs/$name.log
  start=$SECONDS
  say "" && say "== $name"
  "$@" 2>&1 | tee "$log"
  rc=${PIPESTATUS[0]}
  read -r p f < <(counts "$log")
  if [ "$rc" = 0 ] && [ "$f" = 0 ]; then
    result=ok
  elif [ "$rc" = 3 ] && [ -z "${CI:-}" ]; then
    result=skipped
    skipped=$((skipped + 1))
  else
    result=FAILED
    broken=$((broken + 1))
    # What broke without naming a test still counts as one.
    [ "$f" != 0 ] || f=1
  fi
  passed=$((passed + p))
  failed=$((failed + f))
  table+=("$(printf '%-12s %-8s %6s passed %4s failed %5s s' "$name" "$result" "$p" "$f" "$((SECONDS - start))")")
}

# The tests in a log: the closing lines of `cargo test` and those of our own runners ("NAME: N passed, N failed").
counts() {
  awk '
    /^test result: / { for (i = 1; i < NF; i++) { if ($(i+1) == "passed;") p += $i; if ($(i+1) == "failed;") f += $i } }
    /^(python|node|grpcurl|deploy|scripts|(example|balancer)-[a-z]+): [0-9]+ passed, [0-9]+ failed$/ { p += $2; f += $4 }
    END { print p + 0, f + 0 }' "$1"
}

# needs PART COMMAND...: the command, once the tools of that part of setup.sh are there.
needs() {
  "$root/scripts/setup.sh" "$1" || return
  shift
  "$@"
}

buf_checks() {
  local base
  "$venv/bin/buf" lint && "$venv/bin/buf" format --diff --exit-code || return 1
  say "buf: lint and format are clean"
  # What has landed must not break: the main branch of the origin, or what came before it when that is what we are.
  base=$(git rev-parse --verify --quiet origin/main) || { say "buf: no landed version to compare with"; return 0; }
  [ "$base" != "$(git rev-parse HEAD)" ] || base=$(git rev-parse --verify --quiet HEAD^) || base=
  if [ -z "$base" ] || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
    say "buf: no landed version to compare with"
    return 0
  fi
  # The options that name packages for Go and Java came once, as the last break; the wire is fixed from then on.
  git grep -q '^option go_package' "$base" -- proto || { say "buf: the landed version is from before the wire was fixed"; return 0; }
  "$venv/bin/buf" breaking --against ".git#ref=$base" && say "buf: nothing breaks $(git log -1 --format=%h "$base")"
}

cargo_tests() {
  # The integration tests run these two binaries; cargo builds only the binaries of the crate under test.
  cargo build --workspace --bins --locked && cargo test --workspace --locked --no-fail-fast
}

# The store tests, those of dev and a smoke of the whole on the server .tools/servers/$1, which calls itself $2.
on_server() {
  local server=$tools/servers/$1
  "$root/scripts/setup.sh" servers || return
  # As in cargo_tests: with other features of the dependencies everything would be built twice.
  cargo build --workspace --bins --locked && REDIS_SERVER=$server cargo test --workspace --locked --test store --test dev || return
  "$root/scripts/smoke.sh" "$2" "$server"
}

refusal() {
  "$root/scripts/setup.sh" servers && cargo build --workspace --bins --locked || return
  "$root/scripts/smoke.sh" --refused "Redis 6.2.14" "$tools/servers/redis-6"
}

part redis "$root/scripts/setup.sh" redis
part fmt cargo fmt --all --check
part clippy cargo clippy --workspace --all-targets --locked -- -D warnings
part docs env RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps --locked
part deny needs deny cargo-deny --log-level error check bans licenses sources
part buf needs python buf_checks
part cargo cargo_tests
part valkey-9 on_server valkey-9 "valkey version 9.1.2"
part redis-8 on_server redis-8 "redis version 8.2.3"
part redis-6 refusal
part python needs python "$root/scripts/with-broker.sh" "$venv/bin/python" "$root/tests/python/client_test.py"
part node needs node "$root/scripts/with-broker.sh" node "$root/tests/node/client_test.js"
part ex-readme needs python "$root/tests/examples/example.sh" readme
part ex-python needs python "$root/tests/examples/example.sh" python
part ex-node needs node "$root/tests/examples/example.sh" node
part ex-go needs python "$root/tests/examples/example.sh" go
part grpcurl needs grpcurl "$root/scripts/with-broker.sh" "$root/tests/grpcurl/every_rpc.sh"
part scripts needs python "$root/scripts/lint-scripts.sh"
part deploy needs python "$root/deploy/lint.sh"

say "" && say "== what cargo test said"
grep -hE '^(test result: |test .* FAILED$|error: test failed|error(\[E[0-9]+\])?:)' "$logs/cargo.log" 2>/dev/null | grep -v ' 0 passed; 0 failed; 0 ignored' || true
say "" && say "== summary"
printf '%s\n' "${table[@]}"
if [ "$skipped" != 0 ]; then
  say "$skipped part(s) skipped because a toolchain is absent: $(printf '%s\n' "${table[@]}" | awk '$2 == "skipped" { printf "%s ", $1 }')"
fi
say "$passed passed, $failed failed" | tee "$logs/totals"
[ "$broken" = 0 ]
