#!/bin/bash
# local-nvme.sh: local NVMe controllers, emulated by QEMU, served through their block devices.
# guest: --qemu --cpus 2 --nvme 64M --nvme 64M:logical_block_size=4096,physical_block_size=4096 --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite local-nvme

NQN=nqn.2024-01.org.example:local
here() {
  modprobe nvme-tcp
  wait_until 60 local_nvme 0
  wait_until 60 local_nvme 1
}
check 'two emulated controllers' here
# What is served, in the order of the NSIDs: blocks of 512 and of 4096 bytes.
SMALL=$(local_nvme 0) LARGE=$(local_nvme 1)
SERVED=("${SMALL}n1" "${LARGE}n1")
start target nvmf-target --nqn $NQN --block "${SERVED[0]}" --block "${SERVED[1]}" --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 60 test -s "$SUITE_TMP/ready"
attach() {
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -i 2
  local nsid
  for nsid in 1 2; do wait_until 60 ns_dev $NQN $nsid; done
}
check 'connect' attach

# below NSID: the local block device that this namespace ends on.
below() { echo "${SERVED[$1 - 1]}"; }
geometry() {
  local disk local_disk
  disk=$(ns_dev $NQN "$1") local_disk=$(below "$1")
  expect 'block size' "$2" "$(blockdev --getss "$disk")"
  expect 'block size below' "$2" "$(blockdev --getss "$local_disk")"
  expect 'size' "$(blockdev --getsize64 "$local_disk")" "$(blockdev --getsize64 "$disk")"
  nvme id-ns "$disk" | tee /dev/stderr | grep -q "lbads:$([ "$2" = 512 ] && echo 9 || echo 12) .*(in use)"
}
verify() { fio_verify "$(ns_dev $NQN "$1")" --size=1M --bs="$2"; }
# same NSID OFFSET-MIB: that MiB is the same above and below.
same() {
  dd if="$(ns_dev $NQN "$1")" of="$SUITE_TMP/above" bs=1M skip="$2" count=1 iflag=direct status=none
  dd if="$(below "$1")" of="$SUITE_TMP/below" bs=1M skip="$2" count=1 iflag=direct status=none
  cmp "$SUITE_TMP/above" "$SUITE_TMP/below"
}
reaches() {
  dd if=/dev/urandom of="$(ns_dev $NQN "$1")" bs=1M seek=4 count=1 oflag=direct status=none
  same "$1" 4
}
# counter NSID FIELD: of the block device below, from its stat: 5 writes, 16 flushes.
counter() { awk -v field="$2" '{ print $field }' "/sys/block/$(basename "$(below "$1")")/stat"; }
# Linux deallocates blocks of a device for us by Write Zeroes that may deallocate, which it counts as a write without saying how it was done.
discarded() {
  local before
  before=$(counter "$1" 5)
  blkdiscard -o $((4 << 20)) -l $((1 << 20)) "$(ns_dev $NQN "$1")"
  [ "$(counter "$1" 5)" -gt "$before" ]
  same "$1" 4
  cmp -n $((1 << 20)) "$SUITE_TMP/below" /dev/zero
}
zeroed() {
  dd if=/dev/urandom of="$(ns_dev $NQN "$1")" bs=1M seek=6 count=1 oflag=direct status=none
  blkdiscard -z -o $((6 << 20)) -l $((1 << 20)) "$(ns_dev $NQN "$1")"
  same "$1" 6
  cmp -n $((1 << 20)) "$SUITE_TMP/below" /dev/zero
}
flushed() {
  local before
  before=$(counter "$1" 16)
  dd if=/dev/urandom of="$(ns_dev $NQN "$1")" bs=64k seek=128 count=1 oflag=direct conv=fsync status=none
  nvme flush "$(ns_dev $NQN "$1")" -n "$1"
  [ "$(counter "$1" 16)" -gt "$before" ]
}
for nsid in 1 2; do
  form=${SERVED[nsid - 1]} size=$((nsid == 1 ? 512 : 4096))
  check "$form: identify says blocks of $size bytes" geometry $nsid $size
  check "$form: fio verifies 4 KiB blocks" verify $nsid 4k
  check "$form: fio verifies 128 KiB blocks" verify $nsid 128k
  check "$form: what is written is on the device" reaches $nsid
  check "$form: discard" discarded $nsid
  check "$form: write zeroes" zeroed $nsid
  check "$form: flush" flushed $nsid
done
stopped() {
  nvme disconnect -n $NQN
  stop target
}
check 'the target ends' stopped
no_panic() { ! grep 'panicked' "$SUITE_OUT/target.log"; }
check 'it never panicked' no_panic
