#!/usr/bin/env bash
# Measures this machine, in release builds; everything has a broker and a Redis of its own.
#
# usage: bench.sh                                the standard set beside the direct queue, medians of several rounds (bench.py)
#        bench.sh ARGUMENTS...                   `bananas bench` with these, once
#        bench.sh direct SCENARIO ARGUMENTS...   the direct queue (benches/direct), once
# REDIS_AOF: see with-redis.sh.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

BANANAS_BIN_DIR=${BANANAS_BIN_DIR:-$(target_dir)/release}
export BANANAS_BIN_DIR LOG_LEVEL=warn

if [ $# = 0 ]; then
  have python3 || die "python3 is missing; it runs the rounds (ARGS=... measures single scenarios without it)"
  exec python3 "$root/scripts/bench.py"
fi
# The processes are only known inside.
if [ "$1" = direct ]; then
  shift
  # shellcheck disable=SC2016
  exec "$root/scripts/with-redis.sh" bash -c \
    'exec "$BANANAS_BIN_DIR/direct" "$@" --redis-url "$BANANAS_TEST_REDIS_URL" --redis-pid "$BANANAS_TEST_REDIS_PID"' direct "$@"
fi
# shellcheck disable=SC2016
exec "$root/scripts/with-broker.sh" bash -c \
  'exec "$BANANAS_BIN_DIR/bananas" bench --redis-url "$BANANAS_TEST_REDIS_URL" --broker-pid "$BANANAS_TEST_BROKER_PID" \
   --redis-pid "$BANANAS_TEST_REDIS_PID" --metrics-url "http://127.0.0.1:$BANANAS_TEST_HTTP_PORT/metrics" "$@"' bench "$@"
