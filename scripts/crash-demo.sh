#!/usr/bin/env bash
# Runs `agentctl demo --crash` again and again: the daemon is killed with SIGKILL somewhere in the middle,
# started again, and a judge looks whether a step was lost or doubled. Stops at the first failure and keeps
# what it left. What must not be in here: anything that makes a failure look better than it is.
#
#   scripts/crash-demo.sh [TIMES] [AT ONCE]     default: 100 times, 4 at once
#   AGENTCTL=path/to/agentctl                   default: target/release/agentctl
set -euo pipefail

times=${1:-100}
at_once=${2:-4}
agentctl=${AGENTCTL:-target/release/agentctl}
logs=$(mktemp -d)

one() {
  local log="$logs/$1"
  if ! "$agentctl" demo --crash --remove >"$log" 2>&1; then
    echo "FAILED, round $1:" >&2
    cat "$log" >&2
    return 255 # xargs stops at once
  fi
  # The last rounds of a demo can be over before the kill; they are counted apart.
  grep -q 'through the death of the daemon' "$log" && echo through || echo between
}
export -f one
export logs agentctl

seq "$times" | xargs -P "$at_once" -I{} bash -c 'one {}' | sort | uniq -c | while read -r count how; do
  case $how in
    through) echo "$count times killed in the middle of a step: nothing lost, nothing doubled" ;;
    between) echo "$count times killed between two steps: nothing lost, nothing doubled" ;;
  esac
done
echo "after these entries: $(sed -n 's/.*SIGKILL after entry \([0-9]*\).*/\1/p' "$logs"/* | sort -n | tr '\n' ' ')"
rm -r "$logs"
