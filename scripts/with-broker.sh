#!/usr/bin/env bash
# Runs a command with a private Redis and broker, which end when the command ends.
#
# usage: with-broker.sh COMMAND...
# Options: see with-redis.sh. Sets for the command the variables of with-redis.sh, and: BANANAS_BROKER (address),
# BANANAS_TEST_BROKER_BIN (to start more brokers on the same Redis), BANANAS_TEST_HTTP_PORT (metrics and health) and
# BANANAS_TEST_BROKER_PID.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

if [ "${1:-}" != --redis-is-there ]; then
  exec "$root/scripts/with-redis.sh" "$0" --redis-is-there "$@"
fi
shift

broker_bin=$(bin bananas-broker)
dir=$BANANAS_TEST_DIR
broker_pid=
finish() {
  local rc=$?
  trap - EXIT
  [ -z "$broker_pid" ] || end_process "$broker_pid"
  if [ "$rc" != 0 ] && [ -s "$dir/broker.log" ]; then
    say "-- the last lines of the log of the broker" >&2
    tail -n 40 "$dir/broker.log" >&2
  fi
  exit "$rc"
}
trap finish EXIT

# A broker refuses a Redis without persistence by default.
[ "${REDIS_AOF:-everysec}" != no ] || export BANANAS_REDIS_ALLOW_UNSAFE=true
api_port=$(free_port)
http_port=$(free_port)
# The broker warns about variables that look like its settings.
env -u BANANAS_TEST_REDIS_URL -u BANANAS_TEST_REDIS_PID -u BANANAS_TEST_DIR \
  METRICS_PORT="$http_port" LOG_LEVEL="${LOG_LEVEL:-info}" \
  "$broker_bin" serve --redis-url "$BANANAS_TEST_REDIS_URL" --listen "127.0.0.1:$api_port" >"$dir/broker.log" 2>&1 &
broker_pid=$!
until_true 20 http_ok "$http_port" /readyz || die "the broker did not become ready"

export BANANAS_BROKER=http://127.0.0.1:$api_port BANANAS_TEST_BROKER_BIN=$broker_bin
export BANANAS_TEST_HTTP_PORT=$http_port BANANAS_TEST_BROKER_PID=$broker_pid
"$@"
