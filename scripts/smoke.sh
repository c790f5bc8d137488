#!/usr/bin/env bash
# A smoke test on another Redis or Valkey: jobs through a `dev` broker, by hand and by a worker, and a kill -9 of the
# server.
#
# usage: smoke.sh NAME SERVER            SERVER: the program; NAME: what `bananas info` must print, for example
#                                        "valkey version 9.1.2"
#        smoke.sh --refused NAME SERVER  the broker must refuse to start, and name NAME, for example "Redis 6.2.14"
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

broker_bin=$(bin bananas-broker)
cli=$(bin bananas)

if [ "${1:-}" = --refused ]; then
  # shellcheck disable=SC2016 # expanded inside with-redis.sh
  said=$(REDIS_SERVER=$3 "$root/scripts/with-redis.sh" bash -c \
    'rc=0
     timeout 20 "$1" serve --redis-url "$BANANAS_TEST_REDIS_URL" --listen 127.0.0.1:0 \
       --set http.enabled=false 2>&1 || rc=$?
     echo "exit $rc"' smoke "$broker_bin")
  [[ $said == *"exit 1" && $said == *"$2 is too old"* ]] || die "the broker must refuse $2 with exit 1: $said"
  say "smoke: the broker refuses $2: $(grep -m 1 -o "$2 is too old.*" <<<"$said")"
  exit
fi

name=$1
export REDIS_SERVER=$2
begin_work

port=$(free_port)
http_port=$(free_port)
"$broker_bin" dev --port "$port" --data-dir "$work/data" --set "http.listen=127.0.0.1:$http_port" \
  >"$work/broker.log" 2>&1 &
pids+=("$!")
until_true 20 http_ok "$http_port" /readyz || die "the broker did not become ready"
export BANANAS_BROKER=http://127.0.0.1:$port
info=$("$cli" info)
[[ $info == *" $name"* ]] || die "bananas info does not print $name: $info"

# field NAME: the value of that field in the JSON objects on stdin, one a line.
field() { sed -nE 's/.*"'"$1"'": ?"([^"]*)".*/\1/p'; }

# By hand: enqueue, lease, ack.
job=$("$cli" enqueue smoke/hand --payload by-hand --retention 1h -o json | field job_id)
token=$("$cli" lease smoke --wait 10s -o json | field lease_token)
"$cli" ack "$token" --result by-hand >/dev/null
ended=$("$cli" job wait "smoke/$job" --for 10s -o json) || die "the acked job ended with $?: $ended"

# A kill -9 of the server: the stored jobs survive, and a worker on a stream runs them.
seq 20 | "$cli" enqueue smoke/crash --each-line --retention 1h -o json | field job_id >"$work/jobs"
[ "$(wc -l <"$work/jobs")" = 20 ] || die "stored $(wc -l <"$work/jobs") of 20 jobs"
kill -9 "$(cat "$work/data/redis/redis.pid")"
"$cli" worker --queue smoke --exec cat >"$work/worker.log" 2>&1 &
pids+=("$!")
while IFS= read -r job; do
  # Calls can fail while the server starts again.
  until_true 30 "$cli" job wait "smoke/$job" --for 20s ||
    die "job $job did not succeed: $("$cli" job get "smoke/$job" 2>&1)"
done <"$work/jobs"
grep -q 'exited; restarting it' "$work/broker.log" || die "the server was not started again, so the kill proved nothing"
say "smoke: $name: 21 jobs succeeded, 20 of them after a kill -9 of the server"
