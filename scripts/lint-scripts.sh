#!/usr/bin/env bash
# Runs shellcheck on every shell script of the repository, and checks that scripts/mutations.sh is up to date.
set -uo pipefail
# shellcheck source=scripts/lib.sh
. "$(dirname "$0")/lib.sh"
cd "$root" || exit 1

passed=0
failed=0
while IFS= read -r script; do
  if "$venv/bin/shellcheck" --external-sources --severity=style "$script"; then
    passed=$((passed + 1))
  else
    failed=$((failed + 1))
  fi
done < <({ git ls-files '*.sh' .ci/run; git ls-files --others --exclude-standard '*.sh' .ci/run; } | sort -u)
if "$root/scripts/mutations.sh" --check; then passed=$((passed + 1)); else failed=$((failed + 1)); fi
say "scripts: $passed passed, $failed failed"
[ "$failed" = 0 ]
