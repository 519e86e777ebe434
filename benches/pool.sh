#!/bin/bash
# pool.sh - how long volumes, snapshots and clones take: a target with a pool on an XFS made for this, asked through its management API.
# Needs root. Prints tables in Markdown.
#
#   benches/pool.sh                      all tables
#
# Environment: BENCH_DIR where the file system's image goes (default /var/tmp), BENCH_ROUNDS (default 20), BENCH_NO_BUILD=1 to measure
# the program that is there, BENCH_WRAP, a command put before the target (for example "chrt -f 1" on a machine that does other work),
# CARGO_TARGET_DIR as cargo has it.
# Exit: 0 measured, whatever the figures are; 1 something could not be run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=benches/xfs.sh
. benches/xfs.sh

for tool in python3 mkfs.xfs filefrag; do
  command -v "$tool" >/dev/null || { echo "pool: $tool is missing: apt-get install python3 xfsprogs e2fsprogs" >&2; exit 1; }
done
[ "$(id -u)" = 0 ] || { echo "pool: mounting needs root" >&2; exit 1; }
[ -n "${BENCH_NO_BUILD:-}" ] || cargo build --release --locked -p nvmf-target

work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/nvmf-pool-bench.XXXXXX")
cleanup() {
  [ -z "${target:-}" ] || { kill "$target" 2>/dev/null; wait "$target" 2>/dev/null; } || true
  unmount_xfs
  rm -rf "$work"
}
trap cleanup EXIT

mount_xfs 8G
mkdir "$work/mnt/p" "$work/mnt/p64K" "$work/mnt/p1M"
cat > "$work/t.toml" <<TOML
listen = ["tcp://127.0.0.1:0"]
[api]
socket = "$work/rpc.sock"
state-dir = "$work/state"
[pool.p]
path = "$work/mnt/p"
nqn-prefix = "nqn.2025-01.org.example"
overcommit = "allow"
extent-size = "0"
require-mount = false
TOML
for unit in 64K 1M; do
  printf '[pool.p%s]\npath = "%s"\nnqn-prefix = "nqn.2025-01.org.example"\novercommit = "allow"\nextent-size = "%s"\nrequire-mount = false\n' \
    $unit "$work/mnt/p$unit" $unit >> "$work/t.toml"
done
${BENCH_WRAP:-} "${CARGO_TARGET_DIR:-target}/release/nvmf-target" --config "$work/t.toml" --log warn --ready-file "$work/ready" >/dev/null &
target=$!
for _ in $(seq 1000); do
  [ ! -e "$work/ready" ] || break
  kill -0 "$target" || exit 1
  sleep 0.01
done
python3 benches/pool.py "$work"
