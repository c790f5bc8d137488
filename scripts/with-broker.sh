#!/usr/bin/env bash
# Runs a command beside a private Redis and broker, and ends both with it.
#
# usage: with-broker.sh COMMAND...
# The command finds in its environment: BANANAS_BROKER (address), BANANAS_TEST_REDIS_URL, BANANAS_TEST_BROKER_BIN (to start
# more brokers on the same Redis), BANANAS_TEST_HTTP_PORT (metrics and health), BANANAS_TEST_DIR (removed afterwards) and
# BANANAS_TEST_BROKER_PID and BANANAS_TEST_REDIS_PID.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

broker_bin=$(bin bananas-broker)
dir=$(mktemp -d)
redis_pid=
broker_pid=
finish() {
  local rc=$?
  trap - EXIT
  [ -z "$broker_pid" ] || end_process "$broker_pid"
  [ -z "$redis_pid" ] || end_process "$redis_pid"
  if [ "$rc" != 0 ] && [ -s "$dir/broker.log" ]; then
    say "-- the last lines of the broker's log" >&2
    tail -n 40 "$dir/broker.log" >&2
  fi
  rm -rf "$dir"
  exit "$rc"
}
trap finish EXIT

redis_port=$(free_port)
redis-server --port "$redis_port" --bind 127.0.0.1 --dir "$dir" --save "" --appendonly yes >"$dir/redis.log" 2>&1 &
redis_pid=$!
until_true 10 redis-cli -p "$redis_port" ping || die "redis-server does not answer: $(tail -n 5 "$dir/redis.log")"

api_port=$(free_port)
http_port=$(free_port)
url=redis://127.0.0.1:$redis_port
METRICS_PORT=$http_port LOG_LEVEL=${LOG_LEVEL:-info} \
  "$broker_bin" serve --redis-url "$url" --listen "127.0.0.1:$api_port" >"$dir/broker.log" 2>&1 &
broker_pid=$!
until_true 20 http_ok "$http_port" /readyz || die "the broker did not become ready"

export BANANAS_BROKER=http://127.0.0.1:$api_port BANANAS_TEST_REDIS_URL=$url BANANAS_TEST_BROKER_BIN=$broker_bin
export BANANAS_TEST_HTTP_PORT=$http_port BANANAS_TEST_DIR=$dir
export BANANAS_TEST_BROKER_PID=$broker_pid BANANAS_TEST_REDIS_PID=$redis_pid
"$@"
