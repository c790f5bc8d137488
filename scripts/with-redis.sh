#!/usr/bin/env bash
# Runs a command with a private Redis, which ends when the command ends.
#
# usage: [REDIS_AOF=everysec|always|no] [REDIS_SERVER=PATH] with-redis.sh COMMAND...
# REDIS_SERVER: the program to start; default redis-server of the PATH.
# REDIS_AOF: appendfsync of the append-only file; no: without the file. Default everysec.
# Sets for the command: BANANAS_TEST_REDIS_URL, BANANAS_TEST_REDIS_PID and BANANAS_TEST_DIR (removed afterwards).
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

aof=${REDIS_AOF:-everysec}
case $aof in
  everysec | always) durability=(--appendonly yes --appendfsync "$aof") ;;
  no) durability=(--appendonly no) ;;
  *) die "REDIS_AOF=$aof is not everysec, always or no" ;;
esac
dir=$(mktemp -d)
redis_pid=
finish() {
  local rc=$?
  trap - EXIT
  [ -z "$redis_pid" ] || end_process "$redis_pid"
  rm -rf "$dir"
  exit "$rc"
}
trap finish EXIT

port=$(free_port)
"$redis_server" --port "$port" --bind 127.0.0.1 --dir "$dir" --save "" "${durability[@]}" >"$dir/redis.log" 2>&1 &
redis_pid=$!
until_true 10 redis-cli -p "$port" ping || die "$redis_server does not answer: $(tail -n 5 "$dir/redis.log")"

export BANANAS_TEST_REDIS_URL=redis://127.0.0.1:$port BANANAS_TEST_REDIS_PID=$redis_pid BANANAS_TEST_DIR=$dir
"$@"
