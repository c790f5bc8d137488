#!/usr/bin/env bash
# Checks the files of this directory without a container engine: runs linters, and starts Redis and a broker with
# redis.conf. A check is skipped if its tool is missing.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/../scripts/lib.sh"
cd "$root/deploy" || exit 1

work=$(mktemp -d)
redis_pid=
broker_pid=
finish() {
  [ -z "$broker_pid" ] || end_process "$broker_pid"
  [ -z "$redis_pid" ] || end_process "$redis_pid"
  rm -rf "$work"
}
trap finish EXIT

passed=0
failed=0
check() {
  local what=$1
  shift
  if "$@" >"$work/out" 2>&1; then
    passed=$((passed + 1))
    say "ok      $what"
  else
    failed=$((failed + 1))
    say "FAILED  $what"
    cat "$work/out"
  fi
}

missing() { say "missing $1"; }

# Copies the units with the paths of the built programs instead of the installed ones, so that systemd finds them.
units() {
  local unit name
  for unit in systemd/*.service; do
    name=$(basename "$unit" | sed 's/@\./@test./')
    sed "s#/usr/local/bin/#$(dirname "$(bin bananas-broker)")/#; /^ExecStart=/s#\${WORKER_EXEC}#cat#" "$unit" \
      >"$work/$name"
  done
}

verify_units() {
  units
  # The output also has warnings about other units of this machine. Ours must have none.
  systemd-analyze verify --man=no "$work"/*.service 2>"$work/verify"
  ! grep -E 'bananas-(broker|worker)' "$work/verify"
}

hardened() {
  units
  systemd-analyze security --offline=true --threshold="$2" "$work/$1"
}

compose() {
  printf 'x' >"$work/redis_password.secret"
  sed "s#\./redis_password\.secret#$work/redis_password.secret#" compose.yaml >"$work/compose.yaml"
  docker compose --project-directory "$root/deploy" -f "$work/compose.yaml" config --quiet
}

# Without a folder of the workspace cargo cannot load it. Copies what the image build sees and asks cargo.
image_has_workspace() {
  local pattern
  mkdir "$work/context"
  while read -r pattern; do
    case $pattern in
      '!'*) git -C "$root" ls-files -- "${pattern#!}" | tar -C "$root" -cf - -T - | tar -C "$work/context" -xf - ;;
    esac
  done <Dockerfile.dockerignore
  cargo metadata --locked --offline --no-deps --format-version 1 --manifest-path "$work/context/Cargo.toml" >/dev/null
}

broker_accepts_redis() {
  local redis_port http_port
  redis_port=$(free_port)
  http_port=$(free_port)
  "$redis_server" "$root/deploy/redis.conf" --port "$redis_port" --bind 127.0.0.1 --dir "$work" \
    --requirepass 'p@ss/w:rd' >"$work/redis.log" 2>&1 &
  redis_pid=$!
  printf '%s\n' 'p@ss/w:rd' >"$work/password"
  export REDISCLI_AUTH='p@ss/w:rd'
  until_true 10 redis-cli -p "$redis_port" ping || { cat "$work/redis.log"; return 1; }
  REDIS_PASSWORD_FILE=$work/password METRICS_PORT=$http_port "$(bin bananas-broker)" serve \
    --redis-url "redis://127.0.0.1:$redis_port/0" --listen "127.0.0.1:$(free_port)" >"$work/broker.log" 2>&1 &
  broker_pid=$!
  until_true 20 http_ok "$http_port" /readyz || { cat "$work/broker.log"; return 1; }
  # The broker must not log a warning about this Redis.
  ! grep -iE '"?level"?[:=]"?warn|^[^ ]+ +WARN' "$work/broker.log"
}

check "Dockerfile (hadolint)" "$venv/bin/hadolint" Dockerfile
check "the image build sees the workspace (cargo metadata)" image_has_workspace
if have systemd-analyze; then
  check "the units are valid (systemd-analyze verify)" verify_units
  check "the broker's unit is hardened (exposure below 2)" hardened bananas-broker.service 20
  check "the worker's unit is hardened (exposure below 3)" hardened bananas-worker@test.service 30
else
  missing "systemd-analyze: the units were not checked"
fi
if have docker && docker compose version >/dev/null 2>&1; then
  check "the Compose file is valid (docker compose config)" compose
else
  missing "docker compose: the Compose file was only parsed as YAML"
  check "the Compose file is YAML" \
    "$venv/bin/python" -c 'import sys, yaml; yaml.safe_load(open(sys.argv[1]))' compose.yaml
fi
check "a broker with a password file accepts a Redis with redis.conf" broker_accepts_redis

say "deploy: $passed passed, $failed failed"
[ "$failed" = 0 ]
