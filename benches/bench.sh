#!/bin/bash
# bench.sh - the measurements of docs/BENCHMARKS.md: builds what is measured, then runs all tables or the named ones.
#
#   benches/bench.sh                     all tables, in less than 20 minutes once built; takes root, for block devices and file systems
#   benches/bench.sh rows                the rows on the null and the memory namespace
#   benches/bench.sh rows null           only the null namespace
#   benches/bench.sh fairness disk       only on the file
#   benches/bench.sh file event digests large scaling depth cost fairness start idle    any of these
#   benches/bench.sh block forms readers pool volumes      these take root; pool and volumes are pool.sh and volumes.sh
#   benches/bench.sh protocol            the protocol's own work: instructions.sh, and criterion's times
#
# A part that cannot be run (a program is missing, it is not root) does not stop the others. The summary at the end names it.
#
# Environment: BENCH_ROUNDS (default 3), BENCH_SECONDS of each measurement (default 0.5), BENCH_DIR for the file (default /var/tmp),
# BENCH_FILE_BYTES (default 2147483648), BENCH_OUT for bench.md and bench.json (default target/bench), BENCH_WRAP, a command put
# before every program that is measured, the yardstick included (for example "nice -n -20" on a machine that does other work),
# BENCH_NO_BUILD=1 to measure the programs that are there, CARGO_TARGET_DIR as cargo has it.
# Exit: 0 measured, whatever the figures are; 1 something could not be run. bench.md, bench.json and the plots are written after each part.
set -euo pipefail
cd "$(dirname "$0")/.."

for tool in python3 fio strace; do
  command -v "$tool" >/dev/null || { echo "bench: $tool is missing: apt-get install $tool" >&2; exit 1; }
done
if [ -z "${BENCH_NO_BUILD:-}" ]; then
  cargo build --release --locked -p nvmf-target -p nvmf-initiator -p nvmf-bench -p nvmf-benches -p nvmf-docker
  case " $* " in
    "  " | *" protocol "*) cargo bench --locked -p nvmf-benches --no-run ;;
  esac
fi
exec python3 benches/bench.py "$@"
