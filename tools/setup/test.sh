#!/bin/bash
# test.sh: `make test`: everything that a change must pass, from a bare machine: installs what is missing, checks, builds,
# sets up the guests and runs all suites. Goes on after a failure; the last line is the sum.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit

. tools/setup/check.sh
step 'packages to test with' tools/setup/apt.sh
step 'dependencies' tools/setup/cargo-deny.sh check --hide-inclusion-graph bans licenses sources
counted 'fuzzing, a minute a target' fuzz/run.sh all 60
step 'release build' cargo build --quiet --workspace --release --locked
step 'instructions of the hot path' benches/instructions.sh
step 'guest: user-mode Linux' tools/guest/guest setup uml
step 'guest: QEMU' tools/guest/guest setup qemu
counted 'suites' tools/guest/suites.sh
finish
