#!/bin/bash
# block-devices.sh: namespaces of the Linux kernel's target as block devices of nvmf-initiator: ublk, FUSE with loop, the
# kernel's nbd, and an NBD server on a socket, with QEMU and with the kernel (by nbd-client) as its clients.
# guest: --uml --mem 1536 --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite block-devices

NQN=nqn.2024-01.org.example:kernel
AT=(-t tcp -a 127.0.0.1 -s 4420)
RUN=(--run-dir "$SUITE_TMP/run")

target() {
  nvmet_subsystem $NQN
  nvmet_namespace $NQN 1 "$(scratch_disk 400M)"
  nvmet_port 1 tcp 127.0.0.1 4420
  nvmet_link 1 $NQN
  wait_until 10 nvmf-initiator "${RUN[@]}" discover "${AT[@]}"
}
check 'a kernel target, found by our discover' target

in_json() { nvmf-initiator "${RUN[@]}" discover "${AT[@]}" -o json | tee /dev/stderr | grep -q $NQN; }
check 'discover in JSON' in_json

# attach FORM: connects; the device's path is in $SUITE_TMP/device.
attach() {
  nvmf-initiator "${RUN[@]}" connect "${AT[@]}" -n $NQN --block "$1" -c 1 | tee /dev/stderr | grep -o '/dev/[a-z]*[0-9]*' | head -n 1 >"$SUITE_TMP/device"
  wait_until 10 test -b "$(device)"
  nvmf-initiator "${RUN[@]}" list | tee /dev/stderr | grep -q "$(device)"
}
device() { cat "$SUITE_TMP/device"; }
detach() {
  nvmf-initiator "${RUN[@]}" disconnect -n $NQN
  ! nvmf-initiator "${RUN[@]}" list | grep -q "$(device)"
}
# What has the device open, as a program that looks at it has, closes it once the daemon has seen that.
log_lines() { wc -l <"$SUITE_TMP/run/daemon.log"; }
waits_after() { tail -n "+$(($1 + 1))" "$SUITE_TMP/run/daemon.log" | grep 'waiting for it to be closed'; }
detach_looked_at() {
  local before ends
  before=$(log_lines)
  exec 9<"$(device)"
  detach 9<&- &
  ends=$!
  wait_until 20 waits_after "$before" 9<&-
  exec 9<&-
  wait $ends
}
identify() {
  nvmf-initiator "${RUN[@]}" id-ctrl "$(device)" | tee /dev/stderr | grep -qi linux
  nvmf-initiator "${RUN[@]}" id-ns "$(device)" >/dev/stderr
}
daemon() { pgrep -f -- "--run-dir $SUITE_TMP/run daemon"; }
verify() { fio_verify "$(device)" "--bs=$1" --size=32M; }
on_fs() {
  wipefs -aq "$(device)"
  mkfs.ext4 -q "$(device)"
  mkdir -p /mnt/fs
  mount "$(device)" /mnt/fs
  fio_verify /mnt/fs/file --size=32M --bs=64k --fsync=16
}
busy() { nvmf-initiator "${RUN[@]}" disconnect -n $NQN; }
leave_fs() { umount /mnt/fs; }
discard() {
  dd if=/dev/urandom of="$(device)" bs=1M count=8 oflag=direct status=none
  blkdiscard -o 0 -l $((4 << 20)) "$(device)"
  blkdiscard -z -o $((4 << 20)) -l $((4 << 20)) "$(device)"
  cmp -n $((8 << 20)) "$(device)" /dev/zero
}
writes() { awk '{ print $5 }' "/sys/block/$(basename "$(device)")/stat"; }
wrote() { [ "$(writes)" -gt "$1" ]; }
under_load() {
  local load before
  before=$(writes)
  fio_verify "$(device)" --size=48M --time_based --runtime=5 --allow_file_create=0 >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 20 wrote $((before + 300))
  "$@"
  wait $load || { cat "$SUITE_TMP/load" && return 1; }
}
cut_link() {
  nvmet_unlink 1 $NQN
  nvmet_link 1 $NQN
}
murder() {
  local old
  old=$(daemon | head -n 1)
  kill -KILL "$old"
  wait_until 20 another "$old"
}
another() { daemon | grep -qv "^$1\$"; }
keeper() { pgrep -f -- "--run-dir $SUITE_TMP/run keeper"; }
another_keeper() { keeper | grep -qv "^$1\$"; }
# Both, one after the other: what the first held is held by its successor, or the device would not work any more. Not under
# load through FUSE: user-mode Linux fails requests that are just being read by a process that is being killed, since it cannot
# copy to that process's memory once the signal is pending (docs/OPERATIONS.md).
murder_both() {
  local old
  old=$(keeper | head -n 1)
  kill -KILL "$old"
  wait_until 20 another_keeper "$old"
  # The daemon answers when it has given it everything.
  wait_until 20 nvmf-initiator "${RUN[@]}" list
  murder
  verify 4k
}

# Memory reclaim may write to the device: what serves it must not wait for that. PR_SET_IO_FLUSHER sets PF_MEMALLOC_NOIO.
ready_for_reclaim() {
  local daemon stat flags
  daemon=$(daemon | head -n 1)
  for stat in "/proc/$daemon/task"/*/stat; do
    flags=$(sed 's/.*) //' "$stat" | awk '{ print $7 }')
    echo "$stat: $flags" >&2
    [ $((flags & 0x80000)) != 0 ]
  done
  [ "$(awk '/^VmLck:/ { print $2 }' "/proc/$daemon/status")" -gt 0 ]
}

for form in ublk fuse nbd; do
  check "$form: connect makes a device" attach $form
  check "$form: no thread of the daemon waits for devices to get memory, and it stays in memory" ready_for_reclaim
  check "$form: id-ctrl, id-ns" identify
  for bs in 4k 64k 1m; do check "$form: fio verifies with $bs blocks" verify $bs; done
  check "$form: discard and write zeroes" discard
  check "$form: ext4" on_fs
  refuse "$form: disconnect while mounted" 'in use|mounted|busy' busy
  check "$form: unmount" leave_fs
  check "$form: the target goes and comes back under fio verify" under_load cut_link
  # Through FUSE on machines with a kernel of their own only: loopback.sh, and the tests of the crate.
  [ $form = fuse ] || check "$form: kill -9 of the daemon under fio verify" under_load murder
  check "$form: kill -9 of the keeper, then of the daemon" murder_both
  check "$form: disconnect while a program looks at the device" detach_looked_at
done

# The tests of the crate that need the kernel's driver, which their own machine seldom has. `cargo test` made them.
driver_tests() {
  local tests
  tests=$(find "$NVMF_BIN/../debug/deps" -maxdepth 1 -name 'block-*' -type f -executable -printf '%T@ %p\n' | sort -n | tail -n 1 | awk '{ print $2 }')
  [ -n "$tests" ] || { echo "no tests of nvmf-initiator in $NVMF_BIN/../debug: cargo test -p nvmf-initiator --no-run" >&2 && return 1; }
  "$tests" --test-threads=1 nbd:: | tee /dev/stderr | grep -q '^test result: ok. [1-9]'
}
CHECK_TIMEOUT_S=300 check "nbd: the crate's own tests of the driver" driver_tests

socket() {
  nvmf-initiator "${RUN[@]}" connect "${AT[@]}" -n $NQN --block nbd-socket -c 1 | tee /dev/stderr | grep -o 'nbd+unix://[^ ]*' >"$SUITE_TMP/uri"
  nvmf-initiator "${RUN[@]}" list -o json | jq -r '.controllers[].namespaces[].device' >"$SUITE_TMP/device"
  test -S "$(device)"
}
check 'nbd-socket: connect gives a URI' socket
uri() { cat "$SUITE_TMP/uri"; }
check 'nbd-socket: libnbd reads size and abilities' nbdinfo --can flush "$(uri)"

qemu() {
  qemu-io -f raw "$(uri)" -c 'write -P 0xa5 0 8M' -c 'write -z 1M 64k' -c 'discard 2M 1M' -c 'write -f -P 0x5a 4M 64k' -c flush \
    -c 'read -P 0xa5 0 1M' -c 'read -P 0 1M 64k' -c 'read -P 0x5a 4M 64k' -c 'read -P 0xa5 5M 3M' | tee "$SUITE_TMP/qemu-io"
  ! grep -i 'fail' "$SUITE_TMP/qemu-io"
}
check 'nbd-socket: QEMU writes, zeroes, discards, forces and reads back' qemu
image() {
  head -c 48M /dev/urandom >/dev/shm/image
  qemu-img convert -n -f raw -O raw /dev/shm/image "$(uri)"
  nbdcopy --connections=4 "$(uri)" /dev/shm/back
  cmp -n $((48 << 20)) /dev/shm/image /dev/shm/back
  rm /dev/shm/image /dev/shm/back
}
check 'nbd-socket: an image in by QEMU, and out by four connections' image

by_kernel() {
  readlink -f "$(device)" >"$SUITE_TMP/socket"
  # Room for all that the driver has open: docs/OPERATIONS.md, NBD.
  sysctl -w net.core.wmem_default=$((512 << 20))
  nbd-client -unix "$(cat "$SUITE_TMP/socket")" /dev/nbd1 -name "$(basename "$(cat "$SUITE_TMP/socket")" .sock)" -C 2 -b 512
  wait_until 10 grep -qx 819200 /sys/block/nbd1/size
  echo /dev/nbd1 >"$SUITE_TMP/device"
}
check 'nbd-socket: the kernel attaches it, by two connections' by_kernel
for bs in 4k 64k 1m; do check "nbd-socket: fio verifies with $bs blocks" verify $bs; done
check 'nbd-socket: discard and write zeroes' discard
check 'nbd-socket: ext4' on_fs
check 'nbd-socket: unmount' leave_fs
refuse 'nbd-socket: disconnect while a client is connected' 'in use: open in' busy
leave_socket() {
  nbd-client -d /dev/nbd1
  wait_until 10 busy
  test ! -e "$(cat "$SUITE_TMP/socket")"
}
check 'nbd-socket: disconnect' leave_socket
