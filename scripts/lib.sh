# shellcheck shell=bash
# Shared by the scripts of this directory: paths, and functions to start processes that end with the script.

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
tools=$root/.tools
# shellcheck disable=SC2034 # used by the scripts that source this
venv=$tools/venv
PATH=$tools/bin:$PATH
# The server for all tests and benchmarks: redis-server of the PATH, or another Redis or Valkey.
# shellcheck disable=SC2034 # used by the scripts that source this
redis_server=${REDIS_SERVER:-redis-server}

say() { printf '%s\n' "$*"; }
die() { printf '%s: %s\n' "$(basename "$0")" "$*" >&2; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# The build directory of cargo.
target_dir() {
  if [ -n "${CARGO_TARGET_DIR:-}" ]; then say "$CARGO_TARGET_DIR"; else say "$root/target"; fi
}

# bin NAME: the path of a binary of this workspace, built with the dev profile. BANANAS_BIN_DIR overrides the directory.
bin() {
  local path
  path=${BANANAS_BIN_DIR:-$(target_dir)/debug}/$1
  [ -x "$path" ] || die "$path is missing; run 'make build' first"
  say "$path"
}

# A free TCP port, below the range of ephemeral ports.
free_port() {
  local port
  for _ in $(seq 100); do
    port=$((20000 + RANDOM % 12000))
    if ! (exec 3<>"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
      say "$port"
      return
    fi
  done
  die "found no free port"
}

# until_true SECONDS COMMAND...: runs the command until it succeeds, for this long at most.
until_true() {
  local deadline=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ "$SECONDS" -lt "$deadline" ] || return 1
    sleep 0.1
  done
}

# end_process PID: SIGTERM to a process that this script started, and SIGKILL after ten seconds.
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

# For scripts that start processes: makes the directory $work and the list $pids. At the end of the script the processes
# are ended and the directory is removed; if the script failed, the log of the broker is printed.
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

# http_ok PORT PATH: whether GET of this path on this machine returns 200.
http_ok() {
  local line
  exec 3<>"/dev/tcp/127.0.0.1/$1" || return 1
  printf 'GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$2" >&3
  IFS= read -r line <&3 || true
  exec 3>&-
  [[ $line == *" 200 "* ]]
}
