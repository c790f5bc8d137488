#!/usr/bin/env bash
# `bananas bench` against a broker and a Redis of its own, in release builds. Arguments are handed on to it.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

BANANAS_BIN_DIR=$(target_dir)/release
export BANANAS_BIN_DIR LOG_LEVEL=warn
# The processes are only known inside.
# shellcheck disable=SC2016
exec "$root/scripts/with-broker.sh" bash -c \
  'exec "$BANANAS_BIN_DIR/bananas" bench --redis-url "$BANANAS_TEST_REDIS_URL" --broker-pid "$BANANAS_TEST_BROKER_PID" \
   --redis-pid "$BANANAS_TEST_REDIS_PID" "$@"' bench "$@"
