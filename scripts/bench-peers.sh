#!/usr/bin/env bash
# Runs the workloads of benches/peers on Bananas (a release build) and on its peers. A peer that cannot be installed is
# left out, and the report says so. Arguments are passed to run.py: --help lists them.
set -euo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"

have python3 || die "python3 is missing"
for part in bullmq gopeers nats; do
  # 3: its toolchain is missing, which setup.sh and the report say. Anything else is an error.
  rc=0
  "$root/scripts/setup.sh" "$part" >&2 || rc=$?
  [ "$rc" = 0 ] || [ "$rc" = 3 ] || die "setting up $part failed"
done
exec python3 "$root/benches/peers/run.py" --bananas-bin "${BANANAS_BIN_DIR:-$(target_dir)/release}" \
  --peers-bin "$tools/peers" "$@"
