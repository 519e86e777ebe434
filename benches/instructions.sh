#!/bin/bash
# instructions.sh - how many instructions each step of the protocol's hot path takes for one command, against benches/instructions.txt.
#
#   benches/instructions.sh           compares: fails where a step takes more than 5 % more than it did
#   benches/instructions.sh renew     writes what is found as the new baseline: in the commit that explains why it grew, or to keep what was gained
#
# valgrind's callgrind counts inside one function (nvmf_benches::hot::counted_step), whatever else the machine does: the same program gives the same
# number. Another compiler makes another program, so a baseline counts only for the toolchain that it names; with any other the steps are
# run and shown and nothing is compared. Compiler flags (RUSTFLAGS, profiles) change programs just as much: renew without flags of your own.
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/.."
readonly BASELINE=benches/instructions.txt BATCHES=50 MOST_PERCENT=5

command -v valgrind >/dev/null || { echo 'instructions: valgrind is missing: tools/setup/apt.sh count' >&2; exit 1; }
mode=${1:-compare}
[ "$mode" = compare ] || [ "$mode" = renew ] || { sed -n '2,/^#$/s/^# \{0,1\}//p' "$0" >&2; exit 2; }
cargo build --quiet --release --locked -p nvmf-benches --bin hot
hot=${CARGO_TARGET_DIR:-target}/release/hot
toolchain=$(rustc -vV | sed -n 's/^rustc //p; s/^host: //p' | paste -sd ' ')

# count STEP: instructions for one command.
count() {
  local log commands
  log=$(mktemp)
  commands=$(valgrind --tool=callgrind --callgrind-out-file=/dev/null --collect-atstart=no \
    --toggle-collect='nvmf_benches::hot::counted_step*' "$hot" "$1" $BATCHES 2>"$log") || { cat "$log" >&2; exit 1; }
  awk -v commands="$commands" '/ Collected : / { if ($NF > 0) { printf "%.1f\n", $NF / commands; found = 1 } } END { exit !found }' "$log" || {
    echo "instructions: callgrind counted nothing in $1: was counted_step renamed, or the program stripped?" >&2
    exit 1
  }
  rm -f "$log"
}

if [ "$mode" = renew ]; then
  {
    echo '# Instructions for one command, by callgrind: see benches/instructions.sh, which writes this file and checks against it.'
    echo "toolchain $toolchain"
    for name in $("$hot" list); do printf '%-34s %s\n' "$name" "$(count "$name")"; done
  } >"$BASELINE.new"
  mv "$BASELINE.new" "$BASELINE"
  cat "$BASELINE"
  exit
fi

of=$(sed -n 's/^toolchain //p' "$BASELINE")
[ "$of" = "$toolchain" ] || echo "instructions: nothing is compared: the baseline is of rustc $of, this is $toolchain"
grown=0
for name in $("$hot" list); do
  now=$(count "$name")
  before=$(awk -v name="$name" '$1 == name { print $2 }' "$BASELINE")
  if [ "$of" != "$toolchain" ]; then
    verdict=''
  elif [ -z "$before" ]; then
    verdict="no baseline: $0 renew" grown=$((grown + 1))
  else
    verdict=$(awk -v now="$now" -v before="$before" -v most=$MOST_PERCENT 'BEGIN {
      percent = (now / before - 1) * 100
      remark = (percent > most) ? "  GREW" : (percent < -most) ? "  renew the baseline to keep this" : ""
      printf "%+.1f %%%s", percent, remark }')
    [[ $verdict != *GREW ]] || grown=$((grown + 1))
  fi
  printf '%-34s %8s %s\n' "$name" "$now" "${before:+was $before  }$verdict"
done
if [ "$grown" != 0 ]; then
  echo "instructions: $grown steps grew by more than $MOST_PERCENT % or have no baseline. If that is the price of something: benches/instructions.sh renew, and say in the commit of what."
  exit 1
fi
