#!/bin/bash
# nvme-passthrough.sh: a local NVMe device served by passthrough, and another through its block device, to the Linux kernel's host.
# guest: --qemu --nvme 256M:logical_block_size=512 --nvme 256M:logical_block_size=4096,physical_block_size=4096 --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite nvme-passthrough
# Nothing is fast without acceleration.
export CHECK_TIMEOUT_S=240

NQN=nqn.2024-01.org.example:local
AT=(-t tcp -a 127.0.0.1 -s 4420)
first=$(local_nvme 0)
second=$(local_nvme 1)
PASSTHRU=/dev/ng${first#/dev/nvme}n1
OTHER=${first}n1 # the same namespace as PASSTHRU
BLOCK=${second}n1

refuses_mounted() {
  mkfs.ext4 -q "$OTHER"
  mount "$OTHER" /mnt
  local said code=0
  said=$(timeout 20 nvmf-target --nqn $NQN --passthru "$PASSTHRU" 2>&1) || code=$?
  umount /mnt
  echo "$said"
  [ $code != 0 ] && [ $code != 124 ] && grep -q 'in use' <<<"$said"
}
check 'a device that is mounted is refused' refuses_mounted

start target nvmf-target --nqn $NQN --allow-any-host --passthru "$PASSTHRU" --block "$BLOCK" --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 60 test -s "$SUITE_TMP/ready"

attach() {
  nvme connect "${AT[@]}" -n $NQN
  wait_until 60 ns_dev $NQN 1
  wait_until 60 ns_dev $NQN 2
}
check 'the host connects' attach
same_size() {
  expect "size of namespace 1" "$(blockdev --getsize64 "$OTHER")" "$(blockdev --getsize64 "$(ns_dev $NQN 1)")"
  expect "size of namespace 2" "$(blockdev --getsize64 "$BLOCK")" "$(blockdev --getsize64 "$(ns_dev $NQN 2)")"
  expect "blocks of namespace 2" "$(blockdev --getss "$BLOCK")" "$(blockdev --getss "$(ns_dev $NQN 2)")"
}
check 'sizes are those of the devices' same_size

# moves NSID DEVICE: data written by the host are on the device, long and short, and what is zeroed or discarded is gone.
moves() {
  local remote=$1 device=$2
  dd if=/dev/urandom of="$SUITE_TMP/data" bs=1M count=4 status=none
  dd if="$SUITE_TMP/data" of="$remote" bs=1M oflag=direct status=none
  blockdev --flushbufs "$device"
  dd if="$device" bs=1M count=4 status=none | cmp - "$SUITE_TMP/data"
  dd if="$remote" bs=4096 count=16 skip=100 iflag=direct status=none | cmp - <(dd if="$SUITE_TMP/data" bs=4096 count=16 skip=100 status=none)
  blkdiscard -z -o 0 -l 1M "$remote"
  dd if="$remote" bs=1M count=1 iflag=direct status=none | cmp - <(head -c 1M /dev/zero)
  blkdiscard -o 1M -l 1M "$remote"
  dd if="$remote" of=/dev/null bs=1M count=4 iflag=direct status=none
  dd if="$remote" bs=1M skip=2 count=2 iflag=direct status=none | cmp - <(tail -c 2M "$SUITE_TMP/data")
  dd if="$SUITE_TMP/data" of="$remote" bs=64k count=4 oflag=direct,dsync status=none
  nvme flush "$remote" -n "$(cat "/sys/class/block/$(basename "$remote")/nsid")"
}
check 'data through passthrough' moves "$(ns_dev $NQN 1)" "$OTHER"
check 'data through the block device' moves "$(ns_dev $NQN 2)" "$BLOCK"

verifies() {
  fio --name=v --filename="$1" --size=16M --bs="$2" --rw=randwrite --ioengine=libaio --direct=1 --iodepth=8 --verify=crc32c --minimal >/dev/null
}
check 'fio verifies through passthrough' verifies "$(ns_dev $NQN 1)" 4k
check 'fio verifies through passthrough with long transfers' verifies "$(ns_dev $NQN 1)" 1M
compares() {
  head -c 4096 "$SUITE_TMP/data" >"$SUITE_TMP/block"
  nvme write "$1" -s 0 -c 7 -z 4096 -d "$SUITE_TMP/block"
  nvme compare "$1" -s 0 -c 7 -z 4096 -d "$SUITE_TMP/block"
  ! nvme compare "$1" -s 8 -c 7 -z 4096 -d "$SUITE_TMP/block"
}
check 'Compare through passthrough' compares "$(ns_dev $NQN 1)"
check 'the host disconnects' nvme disconnect -n $NQN
stops() { stop target; }
check 'the target stops' stops
