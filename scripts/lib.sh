# shellcheck shell=bash
# What the scripts of this directory share: where things are, and how to start a private Redis and broker that end with the script.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/.tools
# shellcheck disable=SC2034 # for those who source this
venv=$tools/venv
PATH=$tools/bin:$PATH
# The server under every test and measurement: a path to another redis-server, or to a valkey-server.
# shellcheck disable=SC2034 # for those who source this
redis_server=${REDIS_SERVER:-redis-server}

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The directory into which cargo builds.
target_dir() {
  if [ -n "${CARGO_TARGET_DIR:-}" ]; then say "$CARGO_TARGET_DIR"; else say "$root/target"; fi
}

# A binary of this workspace, as the dev profile builds it; BANANAS_BIN_DIR overrides where it is looked for.
bin() {
  local path
  path=${BANANAS_BIN_DIR:-$(target_dir)/debug}/$1
  [ -x "$path" ] || die "$path is missing; run 'make build' first"
  say "$path"
}

# A TCP port that nobody listens on. Below the range from which outgoing connections take theirs.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      say "$port"
      return
    fi
  done
  die "no free port found"
}

# until_true SECONDS COMMAND...: runs the command until it succeeds.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# Ends a process that this script started: asks, waits, insists.
end_process() {
  local pid=$1
  kill "$pid" 2>/dev/null || return 0
  for _ in $(seq 100); do
    kill -0 "$pid" 2>/dev/null || break
    sleep 0.1
  done
  kill -9 "$pid" 2>/dev/null || true
  wait "$pid" 2>/dev/null || true
}

# For a script that starts processes: `work`, a directory, and `pids`; both end with the script, and the broker's log is shown where it failed.
begin_work() {
  work=$(mktemp -d)
  pids=()
  trap finish_work EXIT
}

finish_work() {
  local rc=$?
  trap - EXIT
  for pid in "${pids[@]}"; do end_process "$pid"; done
  if [ "$rc" != 0 ] && [ -s "$work/broker.log" ]; then tail -n 20 "$work/broker.log" >&2; fi
  rm -rf "$work"
  exit "$rc"
}

# GET of a path on a port of this machine; succeeds on 200.
http_ok() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&3
  IFS= read -r line <&3 || true
  exec 3>&-
  [[ $line == *" 200 "* ]]
}
