#!/bin/bash
# storage-faults.sh: the Linux host against nvmf-target while the storage below fails, and what Flush and FUA do to it.
# guest: --uml --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite storage-faults

NQN=nqn.2024-01.org.example:faults
STORE=/mnt/store
SECTORS=131072 # of 512 bytes in each device mapper disk: 64 MiB

# Namespaces: on a small file system 1 a sparse file, 2 an allocated one, 3 one to truncate, 4 one to delete; 5 a device mapper disk that
# fails, 6 a file on another; 7 one that records what is written.
# mapper NAME TABLE...: makes it, or gives it another table.
mapper() {
  local name=$1
  shift
  if [ -b "/dev/mapper/$name" ]; then
    printf '%s\n' "$@" | dmsetup reload "$name"
    dmsetup suspend --noflush --nolockfs "$name"
    dmsetup resume "$name"
  else
    printf '%s\n' "$@" | dmsetup create "$name"
  fi
}
storage() {
  scratch_fs ext4 96M $STORE
  truncate -s 128M $STORE/thin
  truncate -s 16M $STORE/other $STORE/cut $STORE/deleted
  fallocate -l 16M $STORE/other
  local log
  scratch_disk 64M >"$SUITE_TMP/disk"
  scratch_disk 64M >"$SUITE_TMP/fs-disk"
  scratch_disk 64M >"$SUITE_TMP/logged"
  log=$(scratch_disk 160M)
  losetup --noheadings --output BACK-FILE "$log" >"$SUITE_TMP/log-file"
  mapper bad "0 $SECTORS linear $(cat "$SUITE_TMP/disk") 0"
  mapper bad-fs "0 $SECTORS linear $(cat "$SUITE_TMP/fs-disk") 0"
  mapper logged "0 $SECTORS log-writes $(cat "$SUITE_TMP/logged") $log"
  mkfs.ext4 -q /dev/mapper/bad-fs
  mkdir -p /mnt/bad
  mount -o errors=continue /dev/mapper/bad-fs /mnt/bad
  dd if=/dev/urandom of=/mnt/bad/file bs=1M count=32 oflag=direct status=none # written: what was only allocated reads without the disk
}
check 'storage' storage
start target nvmf-target --nqn $NQN --file $STORE/thin --file $STORE/other --file $STORE/cut --file $STORE/deleted \
  --block /dev/mapper/bad --file /mnt/bad/file --block /dev/mapper/logged --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"
attach() {
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN
  local nsid
  for nsid in 1 2 3 4 5 6 7; do wait_until 20 ns_dev $NQN $nsid; done
}
check 'connect' attach

# command_at NSID read|write OFFSET [ARGS]: a command of 4 KiB that comes from no file system and no block layer: nobody repeats or maps it.
command_at() {
  local disk size
  disk=$(ns_dev $NQN "$1")
  size=$(blockdev --getss "$disk")
  head -c 4096 /dev/zero >"$SUITE_TMP/zeroes"
  nvme "$2" "$disk" -s $(($3 / size)) -c $((4096 / size - 1)) -z 4096 -d "$SUITE_TMP/$([ "$2" = write ] && echo zeroes || echo data)" "${@:4}" 2>&1
}
# status WANT NSID read|write OFFSET: the command must fail with a status (with DNR: 0x4000) that nvme-cli prints as hexadecimal.
status() {
  local said
  said=$(command_at "${@:2}") && echo "succeeded: $said" && return 1
  echo "$said"
  grep -qiE "\(0x$1\)|NVMe status.*0x$1" <<<"$said"
}
well() { fio_verify "$(ns_dev $NQN 2)" --size=2M --bs=64k; }

# A full file system.
fill() { dd if=/dev/zero of="$(ns_dev $NQN 1)" bs=1M count=128 oflag=direct; }
refuse 'a full file system: the write ends with ENOSPC' 'No space left on device' fill
check 'a full file system: Capacity Exceeded, Do Not Retry' status 4081 1 write $((127 << 20))
check 'a full file system: an allocated file is unharmed' well
reads() { dd if="$(ns_dev $NQN 1)" of=/dev/null bs=1M iflag=direct; }
check 'a full file system: reads go on' reads
freed() {
  blkdiscard "$(ns_dev $NQN 1)"
  dd if=/dev/urandom of="$(ns_dev $NQN 1)" bs=1M count=16 oflag=direct
}
check 'a full file system: writes go on when blocks were given back' freed

# A truncated file.
cut_file() { truncate -s 4M $STORE/cut; }
check 'a truncated file: cut' cut_file
check 'a truncated file: Unrecovered Read Error past its end' status '281' 3 read $((8 << 20))
check 'a truncated file: Write Fault past its end' status '280' 3 write $((8 << 20))
check 'a truncated file: what is left is readable' command_at 3 read $((1 << 20))
check 'a truncated file: the log says so' wait_until 20 grep -q 'was truncated' "$SUITE_OUT/target.log"
mended() {
  truncate -s 16M $STORE/cut
  wait_until 20 command_at 3 write $((8 << 20))
}
check 'a truncated file: I/O goes on when it has its size again' mended

# A deleted file.
deleted() {
  rm $STORE/deleted
  wait_until 20 grep -q 'was deleted' "$SUITE_OUT/target.log"
  fio_verify "$(ns_dev $NQN 4)" --size=2M
}
check 'a deleted file: a warning, and I/O goes on' deleted

# I/O errors: sectors from 32 MiB on fail, then all of them work again.
break_at() { mapper "$1" "0 65536 linear $2 0" "65536 65536 error"; }
break_block() { break_at bad "$(cat "$SUITE_TMP/disk")"; }
check 'a failing device' break_block
check 'a failing device: Unrecovered Read Error' status '281' 5 read $((40 << 20))
check 'a failing device: Write Fault' status '280' 5 write $((40 << 20))
check 'a failing device: sound blocks are served' command_at 5 read 0
check 'a failing device: other namespaces go on' well
mend_block() {
  mapper bad "0 $SECTORS linear $(cat "$SUITE_TMP/disk") 0"
  command_at 5 write $((40 << 20))
}
check 'a failing device: served when it works again' mend_block
break_fs() { mapper bad-fs "0 $SECTORS error"; }
check 'a failing device below a file' break_fs
check 'a failing device below a file: Unrecovered Read Error' status '281' 6 read 0
check 'a failing device below a file: Write Fault' status '280' 6 write 0
check 'a failing device below a file: other namespaces go on' well
mend_fs() {
  mapper bad-fs "0 $SECTORS linear $(cat "$SUITE_TMP/fs-disk") 0"
  command_at 6 read 0
}
check 'a failing device below a file: served when it works again' mend_fs
one_connection() { expect 'associations in the log' 1 "$(grep -c 'host connected' "$SUITE_OUT/target.log")"; }
check 'no fault cost the host its connection' one_connection

# Durability. dm-log-writes records the writes below namespace 7 in the order in which they became stable: one that no Flush and no FUA
# made so is not in the log. The log is a super block of one sector, then for each entry a sector that describes it, and its data.
cat >"$SUITE_TMP/log.py" <<'PY'
"""log.py LOG MARK [DISK]: whether LOG has MARK; with DISK, also writes to it all that was stable before, as a power cut then would leave it."""
import struct, sys

DISCARD, MARK = 4, 8
log, wanted = open(sys.argv[1], "rb"), sys.argv[2].encode()
disk = open(sys.argv[3], "r+b") if len(sys.argv) > 3 else None
magic, version, count, sector_bytes = struct.unpack("<QQQL", log.read(28))
assert magic == 0x6A736677736872 and version == 1, "not a log of dm-log-writes"
at = sector_bytes
for number in range(count):
    log.seek(at)
    sector, sectors, flags, mark_bytes = struct.unpack("<QQQQ", log.read(32))
    if flags & MARK:
        if log.read(mark_bytes).rstrip(b"\0") == wanted:
            print(number, "writes before", sys.argv[2])
            sys.exit(0)
        sectors = 0
    elif flags & DISCARD:
        sectors = 0
    elif disk and sectors:
        log.seek(at + sector_bytes)
        disk.seek(sector * sector_bytes)
        disk.write(log.read(sectors * sector_bytes))
    at += (1 + sectors) * sector_bytes
sys.exit(f"the log has {count} entries, none of them the mark {sys.argv[2]}")
PY
# mark NAME: a mark in the log, once it is there. power_cut NAME: the disk as a power cut at that mark leaves it, in $SUITE_TMP/left.
mark() {
  dmsetup message logged 0 mark "$1"
  wait_until 10 python3 "$SUITE_TMP/log.py" "$(cat "$SUITE_TMP/log-file")" "$1"
}
power_cut() {
  rm -f "$SUITE_TMP/left"
  truncate -s $((SECTORS * 512)) "$SUITE_TMP/left"
  python3 "$SUITE_TMP/log.py" "$(cat "$SUITE_TMP/log-file")" "$1" "$SUITE_TMP/left"
}
# left MARK OFFSET LETTER: what a power cut at MARK leaves there is a block of that letter; zero is what was there before all writes.
left() {
  power_cut "$1"
  expect "block at $2 after a power cut at $1" "$3" "$(tail -c +$(($2 + 1)) "$SUITE_TMP/left" | head -c 4096 | tr '\0' 0 | fold -w 1 | sort -u)"
}
# put LETTER OFFSET [ARGS]: a Write of 4 KiB.
put() {
  local disk size
  disk=$(ns_dev $NQN 7)
  size=$(blockdev --getss "$disk")
  head -c 4096 /dev/zero | tr '\0' "$1" >"$SUITE_TMP/letters"
  nvme write "$disk" -s $(($2 / size)) -c $((4096 / size - 1)) -z 4096 -d "$SUITE_TMP/letters" "${@:3}"
}
written() {
  put w $((1 << 20))
  mark written
  left written $((1 << 20)) 0
}
check 'a power cut loses a write that nothing made stable' written
flushed() {
  nvme flush "$(ns_dev $NQN 7)" -n 7
  mark flushed
  left flushed $((1 << 20)) w
}
check 'a power cut after Flush does not' flushed
forced() {
  put f $((2 << 20)) --force-unit-access
  mark forced
  left forced $((2 << 20)) f
}
check 'a power cut after a write with FUA does not' forced
synced() {
  head -c 4096 /dev/zero | tr '\0' s | dd of="$(ns_dev $NQN 7)" bs=4k seek=$((3 << 8)) conv=fsync status=none
  mark synced
  left synced $((3 << 20)) s
  head -c 4096 /dev/zero | tr '\0' d | dd of="$(ns_dev $NQN 7)" bs=4k seek=$((4 << 8)) oflag=direct,dsync status=none
  mark dsynced
  left dsynced $((4 << 20)) d
}
check 'fsync and O_DSYNC on the host reach the disk' synced
files() {
  local disk number
  disk=$(ns_dev $NQN 7)
  mkfs.ext4 -q "$disk"
  mkdir -p /mnt/host
  mount "$disk" /mnt/host
  for number in 1 2 3 4 5 6; do
    head -c $((number * 100000)) /dev/urandom >/mnt/host/$number
    sync /mnt/host/$number
    mark "file-$number"
    head -c 1M /dev/urandom >/mnt/host/after-$number # in flight when the power goes
  done
  (cd /mnt/host && sha256sum 1 2 3 4 5 6) >"$SUITE_TMP/sums"
  umount /mnt/host
}
check 'files on the namespace, each synchronized' files
survived() {
  local number
  mkdir -p /mnt/left
  for number in 1 2 3 4 5 6; do
    power_cut "file-$number"
    mount -o loop "$SUITE_TMP/left" /mnt/left
    (cd /mnt/left && head -n $number "$SUITE_TMP/sums" | sha256sum -c)
    umount /mnt/left
    e2fsck -fn "$SUITE_TMP/left"
  done
}
check 'each power cut leaves a sound file system with all that was synchronized' survived

stopped() {
  nvme disconnect -n $NQN
  stop target
}
check 'the target lives, and ends when it is told to' stopped
no_panic() { ! grep 'panicked' "$SUITE_OUT/target.log"; }
check 'it never panicked' no_panic
