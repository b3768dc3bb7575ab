#!/usr/bin/env bash
# Fuzzes what reads hostile input: the policy files' compiler, the
# matcher of commands, the parser of hosts, the redactor, and what a
# launcher reads. By libFuzzer, which is built with the targets; a
# C++ compiler is all that it wants besides Rust.
#
#   scripts/fuzz.sh [--seconds N | --runs N] [target]...
#       each target for so long (10 s); a finding is an error
#   scripts/fuzz.sh --planted
#       the same on a copy with a bug planted for each target, by the
#       patches in fuzz/planted: each has to be found, within two minutes
#
# Inputs begin with fuzz/seeds. An input that makes a finding is kept, and
# named; what was tried on the way is not.
set -euo pipefail
shopt -s inherit_errexit
cd "$(dirname "$0")/.."

readonly TARGETS='policy_files commands hosts redactor orders'
# Longest input, in bytes: half as much again as the longest seed.
readonly LONGEST=4096

# What cargo-fuzz sets too: counters at every edge and comparison.
instrumented() {
  export RUSTFLAGS="--cfg fuzzing -Cpasses=sancov-module \
-Cllvm-args=-sanitizer-coverage-level=4 -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
-Cllvm-args=-sanitizer-coverage-pc-table -Cllvm-args=-sanitizer-coverage-trace-compares"
}

# Prints the directory of the programs. Build scripts are built without counters, which is why there is a target.
build() { # the tree, the directory to build in
  local machine
  machine=$(rustc -vV | sed -n 's/^host: //p')
  (instrumented && cargo build --locked --release --manifest-path "$1/fuzz/Cargo.toml" \
    --target "$machine" --target-dir "$2" >&2)
  echo "$2/$machine/release"
}

fuzz() { # programs, target, libFuzzer's limit of time or runs
  local work status=0 began=$SECONDS
  work=$(mktemp -d)
  cp -r "fuzz/seeds/$2" "$work/corpus"
  local words=()
  [[ $2 != policy_files ]] || words=(-dict=fuzz/yaml.dict)
  "$1/$2" "${words[@]}" -max_len=$LONGEST -timeout=20 -print_final_stats=1 \
    -artifact_prefix="$DIRECTORY/found-$2-" "$3" "$work/corpus" >"$work/log" 2>&1 || status=$?
  local runs
  runs=$(sed -n 's/^stat::number_of_executed_units: *//p' "$work/log")
  if [[ $status != 0 ]]; then
    grep -a -m1 -A2 'panicked at\|ERROR: libFuzzer' "$work/log" || tail -5 "$work/log"
    grep -a 'Test unit written to' "$work/log" || true
    # Whatever else went wrong is no finding.
    grep -aq 'panicked at targets/\|ERROR: libFuzzer' "$work/log" || status=2
  fi
  echo "$2: ${runs:-some} executions, $((SECONDS - began)) s, $([[ $status == 0 ]] && echo 'no finding' || echo 'A FINDING')"
  rm -rf "$work"
  return $status
}

planted() {
  local tree=$1 target missed=0
  git ls-files -z | xargs -0 cp --parents -t "$tree"
  for target in $TARGETS; do
    patch -d "$tree" -p1 -s <"fuzz/planted/$target.patch"
  done
  local programs
  programs=$(build "$tree" "$DIRECTORY/planted")
  for target in $TARGETS; do
    local status=0
    fuzz "$programs" "$target" -max_total_time=120 || status=$?
    if [[ $status == 0 || $status == 2 ]]; then
      echo "$target: the planted bug was not found" >&2
      missed=1
    fi
  done
  return $missed
}

DIRECTORY=$(pwd)/target/fuzz
[[ -z ${CARGO_TARGET_DIR:-} ]] || DIRECTORY=$CARGO_TARGET_DIR/fuzz
readonly DIRECTORY
limit=-max_total_time=10
case ${1:-} in
--planted)
  # Always the same place: what is built there is not built from nothing again.
  rm -rf "$DIRECTORY/tree"
  mkdir -p "$DIRECTORY/tree"
  planted "$DIRECTORY/tree"
  exit
  ;;
--seconds) limit=-max_total_time=$2 && shift 2 ;;
--runs) limit=-runs=$2 && shift 2 ;;
esac
programs=$(build "$(pwd)" "$DIRECTORY")
found=0
# shellcheck disable=SC2086 # words
for target in ${*:-$TARGETS}; do
  fuzz "$programs" "$target" "$limit" || found=1
done
exit $found
