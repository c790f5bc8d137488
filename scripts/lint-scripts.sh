#!/usr/bin/env bash
# Shellcheck over every shell script of the repository.
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
say "scripts: $passed passed, $failed failed"
[ "$failed" = 0 ]
