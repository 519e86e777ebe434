#!/bin/bash
# linux-host.sh: the Linux kernel's NVMe/TCP host against nvmf-target: discovery, identification, data, faults and live changes.
# guest: --uml --mem 1536 --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite linux-host

NQN=nqn.2024-01.org.example:storage
OTHER=nqn.2024-01.org.example:other
FRIEND=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0001
STRANGER=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0002
AT=(-t tcp -a 127.0.0.1 -s 4420)
CONFIG=$SUITE_TMP/target.toml
STORE=/mnt/store

# config LARGE-SIZE [EXTRA-NAMESPACE-LINES]: what the target serves: 512 and 4096 byte blocks, memory, nothing.
config() {
  cat <<TOML
listen = ["tcp://127.0.0.1:4420"]
[[subsystem]]
nqn = "$NQN"
model = "Guest Suite"
allow-any-host = true
[[subsystem.namespace]]
nsid = 1
kind = "file"
path = "$STORE/small-blocks"
size = "96M"
block-size = 512
[[subsystem.namespace]]
nsid = 2
kind = "file"
path = "$STORE/large-blocks"
size = "$1"
block-size = 4096
[[subsystem.namespace]]
nsid = 3
kind = "memory"
size = "64M"
[[subsystem.namespace]]
nsid = 4
kind = "null"
size = "1G"
${2:-}
[[subsystem]]
nqn = "$OTHER"
allowed-hosts = ["$FRIEND"]
[[subsystem.namespace]]
nsid = 1
kind = "memory"
size = "16M"
TOML
}

storage() {
  # XFS on a disk with 512 byte sectors lets direct I/O address 512 bytes, as namespace 1 needs.
  scratch_fs xfs 700M $STORE
  config 400M >"$CONFIG"
  nvmf-target --config "$CONFIG" --check
}
serve() {
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
  wait_until 20 test -s "$SUITE_TMP/ready"
}
check 'a configuration that passes --check' storage
start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

# Discovery.
lists() {
  local log
  log=$(nvme discover "${AT[@]}" "$@")
  echo "$log"
  grep -q "subnqn: *$NQN\$" <<<"$log"
}
check 'discover lists the open subsystem' lists
hides() { ! nvme discover "${AT[@]}" -q $STRANGER | grep -q "subnqn: *$OTHER\$"; }
shows() { nvme discover "${AT[@]}" -q $FRIEND | grep -q "subnqn: *$OTHER\$"; }
check 'discover hides a subsystem from a host that is not allowed' hides
check 'discover shows it to one that is' shows
refuse 'a host that is not allowed is refused' 'Input/output error|failed' nvme connect "${AT[@]}" -n $OTHER -q $STRANGER -I "${STRANGER##*:}"
refuse 'an unknown subsystem is refused' 'Input/output error|failed' nvme connect "${AT[@]}" -n $NQN-no

attach() {
  nvme connect "${AT[@]}" -n $NQN "$@"
  local nsid
  for nsid in 1 2 3 4; do wait_until 20 ns_dev $NQN $nsid; done
}
detached() { ! ctrl_dev $NQN; }
detach() {
  nvme disconnect -n $NQN
  wait_until 20 detached
}
queues() {
  attach -i "$1" "${@:2}"
  # queue_count counts the admin queue too; the kernel asks for no more queues than processors.
  expect 'queues' 2 "$(cat "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/queue_count")"
}
check 'connect' queues 4

# Identification and logs.
identify() {
  local ctrl disk
  ctrl=$(ctrl_dev $NQN) disk=$(ns_dev $NQN 2)
  nvme id-ctrl "$ctrl" | tee /dev/stderr | grep -q '^mn *: Guest Suite'
  nvme id-ctrl "$ctrl" | grep -qE '^vwc *: 0x[13579]'
  nvme id-ns "$disk" | tee /dev/stderr | grep -q 'lbads:12'
  nvme ns-descs "$disk" | grep -q uuid
  nvme list | grep -q "$disk"
  nvme list-ns "$ctrl" | tee /dev/stderr | grep -c '0x' | grep -qx 4
  # Version 2.0, enabled, ready. (show-regs of nvme-cli 2.3 asks for registers that no fabric has, and fails on nvmet too.)
  nvme get-property "$ctrl" --offset=0x08 | grep -q 20000
  nvme get-property "$ctrl" --offset=0x1c | grep -qE '1$'
}
check 'id-ctrl, id-ns, ns-descs, list, list-ns, get-property' identify
logs() {
  local ctrl
  ctrl=$(ctrl_dev $NQN)
  nvme smart-log "$ctrl"
  nvme error-log "$ctrl" >/dev/null
  nvme fw-log "$ctrl"
  nvme changed-ns-list-log "$ctrl"
  nvme effects-log "$ctrl"
  nvme get-log "$ctrl" --log-id=0 --log-len=1024 >/dev/null
  nvme get-log "$ctrl" --log-id=0x12 --log-len=1024 >/dev/null
}
check 'smart-log, error-log, fw-log, changed-ns, effects, supported pages' logs
unsupported_log() { nvme get-log "$(ctrl_dev $NQN)" --log-id=0x0d --log-len=512; }
refuse 'a log page that there is not' 'INVALID_LOG_PAGE|Invalid Log Page|109' unsupported_log
features() {
  local ctrl id
  ctrl=$(ctrl_dev $NQN)
  for id in 0x01 0x02 0x04 0x06 0x07 0x0a 0x0b 0x0f; do nvme get-feature "$ctrl" -f "$id"; done
  nvme get-feature "$ctrl" -f 0x05 -n 1 # Error Recovery belongs to a namespace
}
check 'every feature is readable' features
reads_counted() { nvme smart-log "$(ctrl_dev $NQN)" | sed -n 's/^host_read_commands[[:space:]]*:[[:space:]]*\([0-9,]*\).*/\1/p' | tr -d ,; }
counters() {
  local before
  before=$(reads_counted)
  dd if="$(ns_dev $NQN 1)" of=/dev/null bs=4k count=50 iflag=direct status=none
  [ $(($(reads_counted) - before)) -ge 50 ]
}
check 'smart-log counts reads' counters

# Data.
verify() { fio_verify "$(ns_dev $NQN "$1")" "--bs=$2" --size="$3"; }
for nsid in 1 2 3; do
  for bs in 4k 64k 1m; do check "fio verifies namespace $nsid with $bs blocks" verify $nsid $bs 32M; done
done
small() { fio_verify "$(ns_dev $NQN 1)" --bs=512 --size=2M; }
check 'fio verifies single 512 byte blocks' small
nothing() { cmp -n 1048576 "$(ns_dev $NQN 4)" /dev/zero; }
check 'the null namespace reads as zeroes' nothing
on_fs() {
  local disk
  disk=$(ns_dev $NQN 2)
  wipefs -aq "$disk"
  "mkfs.$1" -q "$disk"
  mkdir -p /mnt/fs
  mount "$disk" /mnt/fs
  fio_verify /mnt/fs/file --size=32M --bs=64k
  fio_verify /mnt/fs/file --size=32M --bs=1m --fsync=4
  umount /mnt/fs
}
check 'ext4' on_fs ext4
check 'xfs' on_fs xfs

# Commands that a user gives by hand: for each the kernel looks at the effects log, and warns of an entry that fits no I/O command.
by_hand() {
  local disk range=(--start-block=8 --block-count=7)
  disk=$(ns_dev $NQN 1)
  head -c 4096 /dev/urandom >"$SUITE_TMP/block"
  nvme write "$disk" "${range[@]}" --data-size=4096 --data="$SUITE_TMP/block"
  nvme compare "$disk" "${range[@]}" --data-size=4096 --data="$SUITE_TMP/block"
  nvme read "$disk" "${range[@]}" --data-size=4096 --data="$SUITE_TMP/read"
  cmp "$SUITE_TMP/block" "$SUITE_TMP/read"
  nvme verify "$disk" "${range[@]}"
  nvme write-zeroes "$disk" "${range[@]}"
  nvme dsm "$disk" --ad --slbs=8 --blocks=8
  nvme flush "$disk"
  nvme read "$disk" "${range[@]}" --data-size=4096 --data="$SUITE_TMP/read"
  cmp -n 4096 "$SUITE_TMP/read" /dev/zero
}
check 'write, compare, read, verify, write-zeroes, dsm, flush by hand' by_hand
fits() { ! dmesg | grep 'unusual effects'; }
check 'the kernel finds no effect of a command unusual' fits

# Allocation: what is discarded or zeroed shows in the file.
allocated_kib() { du -k "$STORE/large-blocks" | cut -f1; }
deallocate() {
  local disk before
  disk=$(ns_dev $NQN 2)
  dd if=/dev/urandom of="$disk" bs=1M count=64 oflag=direct status=none
  before=$(allocated_kib)
  blkdiscard -o 0 -l $((32 << 20)) "$disk"
  [ $((before - $(allocated_kib))) -ge 32000 ]
  cmp -n $((32 << 20)) "$disk" /dev/zero
}
check 'blkdiscard frees blocks of the file' deallocate
zeroes() {
  local disk
  disk=$(ns_dev $NQN 2)
  dd if=/dev/urandom of="$disk" bs=1M count=64 oflag=direct status=none
  blkdiscard -z -o $((8 << 20)) -l $((8 << 20)) "$disk"
  echo 3 >/proc/sys/vm/drop_caches
  cmp -n $((8 << 20)) -i $((8 << 20)):0 "$disk" /dev/zero
  cmp -n $((1 << 20)) -i $((8 << 20)) "$disk" "$STORE/large-blocks"
}
check 'write zeroes zeroes' zeroes

# Life cycle.
# load NSID [FIO-ARGS]: fio verify in the background ($load), once it has written something.
load() {
  local disk before
  disk=$(ns_dev $NQN "$1")
  before=$(writes "$disk")
  fio_verify "$disk" --size=48M --bs=4k --allow_file_create=0 "${@:2}" >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 10 wrote "$disk" $((before + 500))
}
writes() { awk '{ print $5 }' "/sys/block/$(basename "$1")/stat"; }
wrote() { [ "$(writes "$1")" -gt "$2" ]; }
under_load() {
  load 1 --time_based --runtime=4
  "$@"
  wait "$load" || { cat "$SUITE_TMP/load" && return 1; }
}
reset() { nvme reset "$(ctrl_dev $NQN)"; }
rescan() { nvme ns-rescan "$(ctrl_dev $NQN)"; }
check 'controller reset under fio verify' under_load reset
check 'rescan under fio verify' under_load rescan
crash() {
  stop target KILL
  rm "$SUITE_TMP/ready"
  serve
}
check 'kill -9 of the target under fio verify, and a restart' under_load crash
again() {
  wait_until 30 live
  verify 2 64k 16M
}
live() { grep -qx live "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/state"; }
check 'the same devices work after the restart' again
cut_off() {
  load 2 --time_based --runtime=30
  detach
  ! wait "$load"
}
check 'disconnect under load ends it with an error' cut_off
check 'the target is well after that' attach -i 1

# Live changes. A memory namespace gets a new identity at each start of the target, not at each reload.
reload() {
  config "$@" >"$CONFIG"
  kill -HUP "$(pid target)"
}
EXTRA=$(printf '[[subsystem.namespace]]\nnsid = 9\nkind = "memory"\nsize = "8M"\n')
added() {
  reload 400M "$EXTRA"
  wait_until 20 ns_dev $NQN 9
  fio_verify "$(ns_dev $NQN 9)" --size=4M
}
gone() { ! ns_dev $NQN 9; }
removed() {
  reload 400M
  wait_until 20 gone
}
size_is() { [ "$(blockdev --getsize64 "$(ns_dev $NQN 2)")" = "$1" ]; }
resized() {
  reload 480M
  wait_until 20 size_is $((480 << 20))
}
undisturbed() { under_load added; }
check 'a namespace is added, another in use' undisturbed
check 'a namespace is removed' removed
check 'a namespace grows' resized
broken() {
  echo 'listen = 7' >"$CONFIG"
  kill -HUP "$(pid target)"
  wait_until 10 grep -q 'target.toml' "$SUITE_OUT/target.log"
  verify 1 4k 4M
}
check 'a broken configuration is refused and the old one stays' broken

# Digests, one queue.
check 'disconnect' detach
check 'connect with header and data digests, one queue' attach -i 1 -g -G
check 'fio verifies under digests, 4 KiB' verify 1 4k 16M
check 'fio verifies under digests, 1 MiB' verify 2 1m 32M
check 'disconnect again' detach
digest_kinds() {
  attach "$1"
  verify 2 64k 8M
  detach
}
check 'header digest alone' digest_kinds -g
check 'data digest alone' digest_kinds -G
flow_control() {
  attach --disable-sqflow
  verify 1 4k 16M
  verify 2 1m 16M
  detach
}
check 'SQ flow control off' flow_control
friend() {
  nvme connect "${AT[@]}" -n $OTHER -q $FRIEND -I "${FRIEND##*:}"
  wait_until 20 ns_dev $OTHER 1
  nvme disconnect -n $OTHER
}
check 'an allowed host connects' friend

drained() { stop target; }
check 'SIGTERM ends the target' drained
said_nothing_bad() { ! grep -E 'panicked|ERROR' "$SUITE_OUT/target.log" | grep -v target.toml; }
check 'its log holds no panic and no error' said_nothing_bad
