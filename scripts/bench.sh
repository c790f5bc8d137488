#!/usr/bin/env bash
# Runs benchmarks on this machine, in release builds. Each benchmark gets its own Redis and broker.
#
# usage: bench.sh                                the standard set and the direct queue, several rounds (bench.py)
#        bench.sh ARGUMENTS...                   `bananas bench` with these arguments, once
#        bench.sh direct SCENARIO ARGUMENTS...   the direct queue (benches/direct), once
# REDIS_AOF: see with-redis.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

BANANAS_BIN_DIR=${BANANAS_BIN_DIR:-$(target_dir)/release}
export BANANAS_BIN_DIR LOG_LEVEL=warn

if [ $# = 0 ]; then
  have python3 || die "python3 is missing; it is needed for the standard set, but not for single scenarios (ARGS=...)"
  exec python3 "$root/scripts/bench.py"
fi
# The variables in single quotes are set inside with-redis.sh and with-broker.sh.
if [ "$1" = direct ]; then
  shift
  # shellcheck disable=SC2016
  exec "$root/scripts/with-redis.sh" bash -c \
    'exec "$BANANAS_BIN_DIR/direct" "$@" --redis-url "$BANANAS_TEST_REDIS_URL" --redis-pid "$BANANAS_TEST_REDIS_PID"' \
    direct "$@"
fi
# shellcheck disable=SC2016
exec "$root/scripts/with-broker.sh" bash -c \
  'exec "$BANANAS_BIN_DIR/bananas" bench --redis-url "$BANANAS_TEST_REDIS_URL" \
   --broker-pid "$BANANAS_TEST_BROKER_PID" --redis-pid "$BANANAS_TEST_REDIS_PID" \
   --metrics-url "http://127.0.0.1:$BANANAS_TEST_HTTP_PORT/metrics" "$@"' bench "$@"
