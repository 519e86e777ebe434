#!/bin/bash
# soak.sh: `make soak`: the long forms: tests that are marked `ignored` for their length, an hour of fuzzing for each target, and
# all suites with NVMF_SOAK (20) times the repetitions, where a suite repeats at all, and as much more time.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit
. tools/setup/steps.sh
export NVMF_SOAK=${NVMF_SOAK:-20}

step 'packages' tools/setup/apt.sh
step 'release build' cargo build --quiet --workspace --release --locked
step 'guests' tools/guest/guest setup all
counted 'long tests' cargo test --quiet --workspace --release --locked --no-fail-fast -- --include-ignored
counted 'fuzzing, an hour a target' fuzz/run.sh all 3600
counted 'suites' tools/guest/suites.sh "$@"
finish
