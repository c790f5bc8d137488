#!/usr/bin/env bash
# The drill of the tests for rules that stand in the broker's own code: in a copy of the tree one rule at a time is broken, and the test that states it has to
# fail. (tests/it/mutants.rs breaks rules of the scripts without building anything.)
#
# usage: mutations.sh
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root"

tree=$(target_dir)/planted/tree
rm -rf "$tree"
mkdir -p "$tree"
git ls-files -z | tar --null --files-from=- -cf - | tar -xf - -C "$tree"
cd "$tree"
CARGO_TARGET_DIR=$(dirname "$tree")/target
export CARGO_TARGET_DIR
log=$(dirname "$tree")/log
noticed=0

# plant NAME FILE RULE BROKEN TESTS FILTER...: breaks the rule in the file and runs these tests.
plant() {
  local name=$1 file=$2 rule=$3 broken=$4 tests=$5 text
  shift 5
  text=$(<"$file")
  [[ $text == *"$rule"* ]] || die "$name: $file does not have: $rule"
  printf '%s\n' "${text/"$rule"/"$broken"}" >"$file"
  cargo build --workspace --bins --locked >"$log" 2>&1 || die "$name: what was planted does not build: $log"
  cargo test --workspace --locked --test "$tests" --no-run >"$log" 2>&1 || die "$name: what was planted does not build: $log"
  if cargo test --workspace --locked --test "$tests" -- "$@" >"$log" 2>&1; then
    die "$name: nobody noticed: $log"
  fi
  grep -q '^test result: FAILED' "$log" || die "$name: the tests did not run: $log"
  printf '%s\n' "$text" >"$file"
  noticed=$((noticed + 1))
  say "$name: noticed"
}

plant "the worker that was served last stands first in line" server/src/dispatch/line.rs \
  'self.0.pop_first()?' 'self.0.pop_last()?' \
  it equal_streams_get_equal_shares
plant "a keeper that a lease has left behind shortens it" server/src/store/lua/extend.lua \
  '(kind == 107 or kind == 101) and sub(value, 24, 31) ~= keeper' 'false' \
  store a_lease_that_a_stream_keeps_becomes_shorter_only_when_the_stream_ends
plant "a look has no bound in bytes" server/src/store/lua/lease.lua \
  'taken > 0 and (suspect or size > bytes_left)' 'taken > 0 and suspect' \
  store bounds:: a_look_hands_out_no_more_bytes
plant "an enqueue with an unknown outcome wakes nobody" server/src/queue/batch/operations.rs \
  'wake_in_doubt(queue, &unique);' 'let _ = wake_in_doubt;' \
  store those_who_wait_look_for_a_job_whose_enqueue_had_no_answer
plant "a record that is cut short throws" server/src/store/lua/lib.lua \
  'if #record < at + 26 then return nil end' '' \
  store damaged::
plant "a look that finds nothing tells nobody when the first lease ends" server/src/queue/mod.rs \
  'first.or(look.first_lease_ends_in_ms)' 'first' \
  it a_lease_that_the_list_of_queues_has_not_heard_of
say "planted: $noticed of $noticed noticed"
