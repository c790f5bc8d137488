#!/usr/bin/env bash
# A demonstration: hashes every file of a directory through the queue, kills a worker with -9 meanwhile, and compares
# every result with that of sha256sum.
#
# DEMO_DIR=...  the directory; default: the tracked files of this repository
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

broker_bin=$(bin bananas-broker)
cli=$(bin bananas)
tree=${DEMO_DIR:-$root}
queue=demo
workers=4

begin_work

cd "$tree"
if [ -z "${DEMO_DIR:-}" ] && git rev-parse --is-inside-work-tree >/dev/null 2>&1; then
  git -c core.quotePath=false ls-files
else
  find . -type f
fi | while IFS= read -r file; do [ -f "$file" ] && [ -r "$file" ] && printf '%s\n' "$file"; done >"$work/files"
count=$(wc -l <"$work/files")
[ "$count" -gt 0 ] || die "$tree has no files"

port=$(free_port)
http_port=$(free_port)
"$broker_bin" dev --port "$port" --data-dir "$work/redis" \
  --set "http.listen=127.0.0.1:$http_port" --set stream.grace=2s >"$work/broker.log" 2>&1 &
broker=$!
pids+=("$broker")
until_true 20 http_ok "$http_port" /readyz || die "the broker did not become ready"
export BANANAS_BROKER=http://127.0.0.1:$port
say "started a broker with a private Redis on port $port; $count files in $tree"

# worker COMMAND: starts a worker; its process id is in $worker.
worker() {
  local name=demo-${#pids[@]}
  "$cli" worker --queue "$queue" --concurrency 2 --name "$name" --exec "$1" >"$work/$name.log" 2>&1 &
  worker=$!
  pids+=("$worker")
}

# The worker that will be killed is slow, so that it holds jobs then.
# shellcheck disable=SC2016 # expanded by the shell of the worker
worker 'echo started >>"'"$work"'/victim"; sleep 2; sha256sum <"$(cat)"'
victim=$worker
# The shell must not report its end.
disown "$victim"

started=$SECONDS
"$cli" enqueue "$queue/sha256" --each-line --wait -o json <"$work/files" >"$work/answers" 2>"$work/enqueue.log" &
enqueue=$!
pids+=("$enqueue")
until_true 20 test -s "$work/victim" || die "the first worker got no job: $(cat "$work/enqueue.log")"
for _ in $(seq 2 "$workers"); do
  # shellcheck disable=SC2016
  worker 'sha256sum <"$(cat)"'
done
kill -9 "$victim"
say "started $workers workers; killed the first with -9 while it held jobs"

rc=0
wait "$enqueue" || rc=$?
seconds=$((SECONDS - started))
[ "$rc" = 0 ] || die "enqueue --wait ended with $rc: $(tail -n 5 "$work/enqueue.log")"

# The results are in the order of the files, one JSON object on each line.
sed -nE 's/.*"result":\{[^}]*"text":"([0-9a-f]{64})  .*/\1/p' "$work/answers" >"$work/results"
while IFS= read -r file; do sha256sum <"$file" | cut -d' ' -f1; done <"$work/files" >"$work/expected"
redelivered=$(grep -cE '"losses":[1-9]' "$work/answers" || true)

if ! cmp -s "$work/expected" "$work/results"; then
  say "MISMATCH between the results and those of sha256sum:"
  diff <(paste -d' ' "$work/files" "$work/expected") <(paste -d' ' "$work/files" "$work/results") | head -n 20
  exit 1
fi
say "$count jobs in $seconds s, $redelivered of them delivered again; every result equals that of sha256sum"
[ "$redelivered" -gt 0 ] || die "no job was delivered again, so the kill proved nothing"
