#!/usr/bin/env bash
# Runs the crash tests and the mutants of the Lua scripts several times or for some minutes. Stops at the first failure
# and keeps its log.
#
# usage: faults.sh --rounds N [SERVER]     N times
#        faults.sh --minutes N [SERVER]    for N minutes; the last round is completed
# SERVER: the Redis or Valkey to test on, a path or a name in .tools/servers; default: REDIS_SERVER, else redis-server
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root"

count=${2:-}
[[ $count =~ ^[1-9][0-9]*$ ]] || die "usage: faults.sh --rounds|--minutes N [SERVER], with N of at least 1"
case $1 in
  --rounds) goes_on() { [ "$round" -lt "$count" ]; } ;;
  --minutes) goes_on() { [ "$SECONDS" -lt $((count * 60)) ]; } ;;
  *) die "$1 is not --rounds or --minutes" ;;
esac
if [ -n "${3:-}" ]; then
  server=$3
  [[ $server == */* ]] || { "$root/scripts/setup.sh" servers && server=$tools/servers/$server; }
  export REDIS_SERVER=$server
fi

cargo build --workspace --bins --locked
cargo test --workspace --locked --test it --no-run
logs=$(target_dir)/test-logs
mkdir -p "$logs"
round=0
while goes_on; do
  round=$((round + 1))
  log=$logs/faults-$round.log
  started=$SECONDS
  cargo test --workspace --locked --test it -- \
    crash mutants drain a_redrive_of_ten_thousand --include-ignored >"$log" 2>&1 || {
    tail -n 60 "$log"
    die "round $round failed after $((SECONDS / 60)) minutes; the whole log: $log"
  }
  say "round $round: $(grep -o '[0-9]* passed' "$log" | tail -n 1) in $((SECONDS - started)) s"
  rm -f "$log"
done
say "$round round(s) in $SECONDS s, no failure"
