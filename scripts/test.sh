#!/usr/bin/env bash
# Runs all checks and tests, continues after a failure, and ends with a table and the totals.
#
# usage: test.sh [PART...]    only these parts (names as in the table); default: all
# A part is skipped if its toolchain is missing. With CI set, a skipped part is a failure.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1

logs=$(target_dir)/test-logs
mkdir -p "$logs"
# The closing lines are those of this run.
rm -f "$logs/cargo.log"
only=" $* "
table=()
passed=0
failed=0
skipped=0
broken=0

# part NAME COMMAND...: runs the command, shows its output, and counts the tests that it reports.
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
    # A part that fails without naming a test counts as one failed test.
    [ "$f" != 0 ] || f=1
  fi
  passed=$((passed + p))
  failed=$((failed + f))
  table+=("$(printf '%-12s %-8s %6s passed %4s failed %5s s' "$name" "$result" "$p" "$f" "$((SECONDS - start))")")
}

# counts LOG: the passed and failed tests, from the last lines of `cargo test` and of our own runners
# ("NAME: N passed, N failed").
counts() {
  awk '
    /^test result: / { for (i = 1; i < NF; i++) { if ($(i+1) == "passed;") p += $i; if ($(i+1) == "failed;") f += $i } }
    /^[a-z]+(-[a-z]+)?: [0-9]+ passed, [0-9]+ failed$/ { p += $2; f += $4 }
    END { print p + 0, f + 0 }' "$1"
}

# needs PART COMMAND...: installs that part of setup.sh, then runs the command.
needs() {
  "$root/scripts/setup.sh" "$1" || return
  shift
  "$@"
}

buf_checks() {
  local base
  "$venv/bin/buf" lint && "$venv/bin/buf" format --diff --exit-code || return 1
  say "buf: lint and format are clean"
  # Compare with the main branch of the origin, or with its parent if this is that branch.
  base=$(git rev-parse --verify --quiet origin/main) || base=
  [ "$base" != "$(git rev-parse HEAD)" ] || base=$(git rev-parse --verify --quiet HEAD^) || base=
  if [ -z "$base" ] || ! git cat-file -e "$base:buf.yaml" 2>/dev/null; then
    say "buf: there is no earlier version to compare with"
    return 0
  fi
  # The wire is stable since the commit that added the options for Go and Java.
  if ! git grep -q '^option go_package' "$base" -- proto; then
    say "buf: the earlier version is from before the wire was stable"
    return 0
  fi
  "$venv/bin/buf" breaking --against ".git#ref=$base" || return
  say "buf: no breaking change since $(git log -1 --format=%h "$base")"
}

cargo_tests() {
  # The integration tests run the broker and the command line; `cargo test` builds only the binaries of the tested
  # crate.
  cargo build --workspace --bins --locked && cargo test --workspace --locked --no-fail-fast
}

# on_server NAME VERSION: the store tests, the tests of dev and the smoke test on .tools/servers/NAME, which reports
# VERSION.
on_server() {
  local server=$tools/servers/$1
  "$root/scripts/setup.sh" servers || return
  # The same build as in cargo_tests: other features of the dependencies would build everything twice.
  cargo build --workspace --bins --locked &&
    REDIS_SERVER=$server cargo test --workspace --locked --test store --test dev || return
  "$root/scripts/smoke.sh" "$2" "$server"
}

# Misspelled words in all files of the repository; .codespellrc has the exceptions.
spelling() {
  git ls-files --cached --others --exclude-standard -z | xargs -0 "$venv/bin/codespell" && say "spelling: clean"
}

# The broker refuses a Redis that is too old.
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
part spelling needs python spelling
part scripts needs python "$root/scripts/lint-scripts.sh"
part deploy needs python "$root/deploy/lint.sh"

say "" && say "== results of cargo test"
grep -hE '^(test result: |test .* FAILED$|error: test failed|error(\[E[0-9]+\])?:)' "$logs/cargo.log" 2>/dev/null |
  grep -v ' 0 passed; 0 failed; 0 ignored' || true
say "" && say "== summary"
printf '%s\n' "${table[@]}"
if [ "$skipped" != 0 ]; then
  names=$(printf '%s\n' "${table[@]}" | awk '$2 == "skipped" { printf "%s ", $1 }')
  say "$skipped part(s) skipped because a toolchain is missing: $names"
fi
say "$passed passed, $failed failed" | tee "$logs/totals"
[ "$broken" = 0 ]
