#!/bin/bash
# demo.sh - the whole path in one go: a target on a file, attached as a block device, a file system on it, data written and
# verified, the remote namespace measured against the local file, and everything cleaned up again.
#
# Environment: DEMO_SIZE (default 1G), DEMO_DIR (where the files lie, default a fresh folder below /var/tmp), DEMO_SECONDS (of each
# benchmark run, default 2), DEMO_ROUNDS (default 3), CARGO_TARGET_DIR as cargo has it.
# Exit: 0 all done and verified; 1 a step failed (it is named, with its log).
set -euo pipefail
here=$(cd "$(dirname "$0")/../.." && pwd)
cd "$here"

size=${DEMO_SIZE:-1G}
seconds=${DEMO_SECONDS:-2}
rounds=${DEMO_ROUNDS:-3}
nqn=nqn.2014-08.org.nvmexpress:demo
bin=${CARGO_TARGET_DIR:-target}/release
dir=$(mktemp -d "${DEMO_DIR:-/var/tmp}/nvmf-demo.XXXXXX")
target_pid=''
mounted=''
connected=''

say() { if [ -t 1 ]; then printf '\n\033[1m%s\033[0m\n' "$*"; else printf '\n%s\n' "$*"; fi; }

# leave: unmounts. A process' ring, and with it its open file, ends shortly after the process; so it is tried for 5 seconds.
leave() {
  for _ in $(seq 50); do
    umount "$dir/mnt" 2>/dev/null && return
    sleep 0.1
  done
  umount "$dir/mnt"
}

cleanup() {
  local code=$?
  set +e
  [ -n "$mounted" ] && leave
  # By force, and before the target ends: a device that is left behind holds its I/O until ctrl_loss_tmo.
  [ -n "$connected" ] && "$bin/nvmf-initiator" disconnect -n "$nqn" --force >/dev/null
  if [ -n "$target_pid" ]; then
    kill -TERM "$target_pid" 2>/dev/null
    wait "$target_pid" 2>/dev/null
  fi
  if [ $code -ne 0 ]; then
    echo "demo: failed (exit $code); the target's last words:" >&2
    tail -n 20 "$dir/target.log" >&2
  fi
  rm -rf "$dir"
  exit $code
}
trap cleanup EXIT
trap 'exit 130' INT TERM

say '1. Build'
cargo build --release --locked -p nvmf-target -p nvmf-initiator -p nvmf-bench

say "2. A target on a file of $size, and a local file of the same size to measure against"
# Both are written once: reads of blocks that were never written would measure nothing.
fallocate -l "$size" "$dir/remote.img"
fallocate -l "$size" "$dir/local.img"
for file in remote local; do
  "$bin/nvmf-bench" --filename "$dir/$file.img" --rw write --bs 1m --iodepth 4 --quiet >/dev/null
done
"$bin/nvmf-target" --file "$dir/remote.img" --nqn "$nqn" --listen tcp://127.0.0.1:0 --rpc none --state-dir none --ready-file "$dir/ready" \
  >"$dir/target.log" 2>&1 &
target_pid=$!
for _ in $(seq 200); do
  [ -s "$dir/ready" ] && break
  kill -0 "$target_pid" 2>/dev/null || { echo 'demo: the target did not start' >&2; exit 1; }
  sleep 0.05
done
[ -s "$dir/ready" ] || { echo 'demo: the target was not ready within 10 s' >&2; exit 1; }
address=$(head -n 1 "$dir/ready")
address=${address#tcp://}
port=${address##*:}
echo "target: pid $target_pid, $address, $nqn"

say '3. Attach it as a block device'
device=''
if [ "$(id -u)" != 0 ]; then
  echo 'No block device: that takes root. Going on with the in-process initiator.'
elif timeout 60 "$bin/nvmf-initiator" connect -t tcp -a 127.0.0.1 -s "$port" -n "$nqn" >"$dir/connect.out" 2>"$dir/connect.log" </dev/null; then
  cat "$dir/connect.log"
  connected=yes
  device=$(grep -o '/dev/[^ ,;:]*' "$dir/connect.out" | head -n 1)
  "$bin/nvmf-initiator" list
else
  echo 'No block device can be made here, for this reason:'
  sed 's/^/  /' "$dir/connect.log"
  echo 'Going on with the in-process initiator.'
  device=''
fi

if [ -n "$device" ]; then
  say "4. mkfs, mount, write and verify on $device"
  mkfs.ext4 -q -F "$device"
  mkdir "$dir/mnt"
  mount "$device" "$dir/mnt"
  mounted=yes
  df -h "$dir/mnt"
  "$bin/nvmf-bench" --filename "$dir/mnt/data" --size 256m --rw randwrite --bs 64k --iodepth 16 --verify crc32c --quiet
  leave
  mount "$device" "$dir/mnt"
  echo "after unmounting and mounting again: $(ls -l "$dir/mnt/data")"
  leave
  mounted=''
else
  say '4. Write and verify through the in-process initiator'
  "$bin/nvmf-bench" --filename "nvme+tcp://$address/$nqn?nsid=1" --size 256m --rw randwrite --bs 64k --iodepth 16 --verify crc32c --quiet
fi

say '5. Remote namespace (A) against the local file (B)'
"$bin/nvmf-bench" compare "nvme+tcp://$address/$nqn?nsid=1" "$dir/local.img" \
  --rounds "$rounds" --runtime "$seconds" --target-pid "$target_pid"
if [ -n "$device" ]; then
  echo
  echo "The block device (A) against the local file (B):"
  "$bin/nvmf-bench" compare "$device" "$dir/local.img" --rounds 1 --runtime "$seconds" \
    --workload randread:4k:1 --workload randread:4k:32 --workload read:128k:32
fi

say '6. Clean up'
if [ -n "$connected" ]; then
  "$bin/nvmf-initiator" disconnect -n "$nqn"
  connected=''
  echo 'the device is gone'
fi
kill -TERM "$target_pid"
wait "$target_pid"
target_pid=''
echo 'done: the target has drained and ended, the files are removed'
