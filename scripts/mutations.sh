#!/usr/bin/env bash
# Mutation tests of the broker's Rust and Lua: breaks one rule at a time in a copy of the tree, builds it, and expects
# that the test of that rule fails. tests/it/mutants.rs mutates Lua scripts without a build.
#
# usage: mutations.sh            builds and runs each mutation
#        mutations.sh --check    only checks that the rules and the tests that are named here exist
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root"

check_only=
if [ "${1:-}" = --check ]; then
  check_only=yes
else
  tree=$(target_dir)/mutations/tree
  rm -rf "$tree"
  mkdir -p "$tree"
  git ls-files -z | tar --null --files-from=- -cf - | tar -xf - -C "$tree"
  cd "$tree"
  CARGO_TARGET_DIR=$(dirname "$tree")/target
  export CARGO_TARGET_DIR
  log=$(dirname "$tree")/log
fi
count=0

# mutate NAME FILE RULE BROKEN TESTS FILTER...: replaces RULE by BROKEN in FILE and runs the tests with these filters.
mutate() {
  local name=$1 file=$2 rule=$3 broken=$4 tests=$5 text
  shift 5
  text=$(<"$file")
  [[ $text == *"$rule"* ]] || die "$name: $file does not contain: $rule"
  count=$((count + 1))
  if [ -n "$check_only" ]; then
    tests_exist "$name" "$@"
    return
  fi
  printf '%s\n' "${text/"$rule"/"$broken"}" >"$file"
  {
    cargo build --workspace --bins --locked && cargo test --workspace --locked --test "$tests" --no-run
  } >"$log" 2>&1 ||
    die "$name: the mutation does not build: $log"
  if cargo test --workspace --locked --test "$tests" -- "$@" >"$log" 2>&1; then
    die "$name: no test failed: $log"
  fi
  grep -q '^test result: FAILED' "$log" || die "$name: the tests did not run: $log"
  printf '%s\n' "$text" >"$file"
  say "$name: killed"
}

# tests_exist NAME FILTER...: each filter names a module (`bounds::`) or a test.
tests_exist() {
  local name=$1 filter pattern
  shift
  for filter in "$@"; do
    case $filter in
      *::) pattern="^mod ${filter%::};" ;;
      *) pattern="fn [a-z_]*$filter" ;;
    esac
    git grep -q -E "$pattern" -- server/tests tests/it || die "$name: there is no test or module $filter"
  done
}

mutate "the consumer that was served last is served first" server/src/dispatch/wait_list.rs \
  'waiting.pop_first()?' 'waiting.pop_last()?' \
  it equal_streams_get_equal_shares
mutate "a former owner shortens a lease" server/src/store/lua/extend.lua \
  'is_owner and sub(value, LEASE_OWNER_AT, LEASE_OWNER_END) ~= owner' 'false' \
  store a_lease_that_a_stream_owns_becomes_shorter_only_when_the_stream_ends
mutate "a fetch has no limit in bytes" server/src/store/lua/lease.lua \
  'taken > 0 and (suspect or size > bytes_left)' 'taken > 0 and suspect' \
  store bounds:: a_fetch_leases_no_more_bytes
mutate "an enqueue with an unknown outcome wakes no waiter" server/src/queue/batch/enqueue.rs \
  'wake_after_unknown(queue, &unique);' 'let _ = wake_after_unknown;' \
  store consumers_fetch_a_job_whose_enqueue_got_no_reply
mutate "a truncated record raises an error" server/src/store/lua/lib/record.lua \
  'if #record < at + (POLICY_BYTES - 1) then return nil end' '' \
  store damaged::
mutate "a fetch without jobs does not report when the first lease ends" server/src/queue/core.rs \
  'first.or(batch.first_lease_ends_in_ms)' 'first' \
  it a_lease_that_is_missing_in_the_due_index
mutate "a replaced job has no tombstone for its old entry" server/src/store/lua/lib/enqueue.lua \
  'for _, plan in ipairs(left) do add_tombstone(plan.id, plan.lane) end' '' \
  store a_replaced_job_that_fits_its_entry_no_more_goes_to_the_end
mutate "a debounce forgets its longest wait" server/src/store/lua/lib/enqueue.lua \
  'min(start_ms(start), first_ms + tonumber(sub(scope, 3)))' 'start_ms(start)' \
  store a_debounce_moves_the_time_up_to_its_longest_wait
mutate "a repeated replacement replaces again" server/src/store/lua/lib/enqueue.lua \
  "call('HSET', begin(known.memory), unpack(known.memories))" '' \
  store a_repeated_replacement_does_not_undo_the_next_one
mutate "the end of a job frees the window of its key" server/src/store/lua/lib/unique.lua \
  "if key and call('HGET', base .. KEY_UNIQUE, key) == id then" 'if key then' \
  store a_window_holds_the_key_past_the_end_of_its_job
mutate "a repeated call adds its log lines again" server/src/store/lua/lib/extend.lua \
  'if foreign or state[3] == number then return end' 'if foreign then return end' \
  store a_call_that_is_repeated_adds_its_lines_once
mutate "a log stays when its job is deleted" server/src/store/lua/lib/endings.lua \
  ", base .. KEY_LOG .. id)
end" ')
end' \
  store a_log_goes_with_its_job
mutate "a redriven job keeps its attempts" server/src/store/lua/lib/acts/settled.lua \
  'FIELD_FINAL_AT, FIELD_ATTEMPTS, FIELD_LOSSES' 'FIELD_FINAL_AT, FIELD_LOSSES' \
  store a_redriven_job_is_as_if_it_had_never_run
mutate "a redriven job does not take its unique key again" server/src/store/lua/lib/acts/settled.lua \
  '  retake_unique(id)' '' \
  store a_redriven_job_takes_its_unique_key_again
mutate "an expired lease can still be acked" server/src/store/lua/lib/acts/leased.lua \
  'LEASE_TAKEN_NONCE .. sub(lease, LEASE_TIME_AT)' 'lease' \
  store an_expired_lease_is_lost_to_its_holder
if [ -n "$check_only" ]; then
  say "mutations: $count, with their rules and tests in place"
else
  say "mutations: $count of $count killed"
fi
