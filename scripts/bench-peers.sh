#!/usr/bin/env bash
# The workloads of benches/peers on Bananas (a release build) and its peers. A peer that cannot be had is left out, and the
# report says so. Arguments are handed on: --help names them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

have python3 || die "python3 is absent"
for part in bullmq gopeers nats; do
  # What is absent is said there and in the report; what fails is not hidden.
  rc=0
  "$root/scripts/setup.sh" "$part" >&2 || rc=$?
  [ "$rc" = 0 ] || [ "$rc" = 3 ] || die "setting up $part failed"
done
exec python3 "$root/benches/peers/run.py" --bananas-bin "${BANANAS_BIN_DIR:-$(target_dir)/release}" --peers-bin "$tools/peers" "$@"
