#!/bin/bash
# rdma-linux-target.sh: our initiator over soft RoCE: against the Linux kernel's NVMe/RDMA target through ublk, then against nvmf-target,
# with a host over TCP beside it.
# soak guest: --uml --mem 1536 --timeout 1200
# guest: --qemu --cpus 2 --mem 2048 --timeout 1500
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite rdma-linux-target

NQN=nqn.2024-01.org.example:kernel
OURS=nqn.2024-01.org.example:ours
HERE=10.96.0.1
AT=(-t rdma -a "$HERE")
RUN=(--run-dir "$SUITE_TMP/run")
LINUX=nvme+rdma://$HERE/$NQN

# Runs a program as on a machine without rdma-core.
# shellcheck disable=SC2016
WITHOUT_LIBRARY=(unshare -m bash -c 'for lib in /usr/lib/*/librdmacm.so.1; do mount --bind /dev/null "$(readlink -f "$lib")"; done && exec "$@"' -)
refuse 'without rdma-core, -t rdma says what to install' 'rdma://.*librdmacm.*apt install librdmacm1 ibverbs-providers' \
  "${WITHOUT_LIBRARY[@]}" nvmf-initiator "${RUN[@]}" discover "${AT[@]}"
refuse 'an address that no RDMA device reaches' 'rdma link show' nvmf-initiator "${RUN[@]}" discover "${AT[@]}"
refuse 'memory windows belong to RDMA' '--memory-windows belongs to NVMe/RDMA' nvmf-initiator "${RUN[@]}" discover -t tcp -a 127.0.0.1 --memory-windows
refuse 'digests belong to TCP' '--hdr-digest belongs to NVMe/TCP' nvmf-initiator "${RUN[@]}" discover "${AT[@]}" --hdr-digest

SIZE=32M BENCH=16m LOAD=48M ROUNDS=10
[ "$GUEST_KIND" = uml ] || SIZE=2M BENCH=4m LOAD=4M ROUNDS=3 # emulation is slow, but has two processors

rdma_device() {
  [ -e /sys/class/net/dummy0 ] || ip link add dummy0 type dummy
  ip link set dummy0 up
  ip address add $HERE/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
}
prepare 'an RDMA device in software' rdma_device
target() {
  nvmet_subsystem $NQN
  nvmet_namespace $NQN 1 "$(scratch_disk 128M)"
  truncate -s 128M /dev/shm/large-blocks
  nvmet_namespace $NQN 2 "$(losetup --find --show --sector-size 4096 /dev/shm/large-blocks)"
  nvmet_port 1 rdma $HERE 4420
  nvmet_link 1 $NQN
}
prepare 'a kernel target over RDMA, with 512 and 4096 byte blocks' target

lists() {
  local log
  log=$(nvmf-initiator "${RUN[@]}" discover "${AT[@]}")
  echo "$log"
  grep -q "subnqn: *$NQN\$" <<<"$log"
  grep -q 'trtype: *rdma' <<<"$log"
  grep -q 'rdma_cms: *rdma-cm' <<<"$log"
}
check 'discover over RDMA' lists

# bench URL BS DEPTH [BENCH-ARGS]: writes, reads back, compares; fails on any mismatch or error.
bench() {
  nvmf-bench --filename "$1" --rw randwrite --bs "$2" --iodepth "$3" --size $BENCH --verify crc32c --quiet "${@:4}" |
    tee /dev/stderr | grep -q 'verify: [1-9]'
}
for nsid in 1 2; do
  check "library: namespace $nsid, 4 KiB, one at a time" bench "$LINUX?nsid=$nsid" 4k 1
  check "library: namespace $nsid, 64 KiB" bench "$LINUX?nsid=$nsid" 64k 16
  check "library: namespace $nsid, 1 MiB" bench "$LINUX?nsid=$nsid" 1m 8
done
check 'library: a full queue, spinning' bench "$LINUX?nsid=1" 4k 127 --busy-poll 50

# The device's work for each I/O. Reads and writes alternate; a write of 4 KiB goes in its capsule.
counts() {
  local json ios
  json=$(nvmf-bench --filename "$LINUX?nsid=1" --rw randrw --bs "$1" --iodepth 16 --size $BENCH --quiet --output-format json)
  jq -c '.jobs[0] | { reads: .read.total_ios, writes: .write.total_ios, rdma }' <<<"$json"
  count() { jq ".jobs[0].$1" <<<"$json"; }
  ios=$(count 'read.total_ios + .jobs[0].write.total_ios')
  # Connect is a command too, with a receive of its own; then there is one for each command that can be open, and another after each answer.
  expect 'work requests: one for each I/O' $((ios + 1)) "$(count rdma.work_requests)"
  expect 'receives' $((ios + 1 + 127)) "$(count rdma.receives)"
  # An answer for each I/O, and for each post a completion, whatever is in it.
  expect 'signalled' "$(count rdma.posts)" "$(count rdma.signalled)"
  expect 'completions' $((ios + 1 + $(count rdma.posts))) "$(count rdma.completions)"
  [ "$(count rdma.registrations)" -le 4 ] # one for each 2 MiB of the pool that are used, none for each I/O
}
check 'work requests, completions and registrations for I/O of 4 KiB' counts 4k
check 'work requests, completions and registrations for I/O of 64 KiB' counts 64k

# windows_counts URL BS INVALIDATIONS: one work request more for each I/O whose data are not in its capsule; INVALIDATIONS of ours: all
# of those, or none.
windows_counts() {
  local json reads writes keyed binds
  json=$(nvmf-bench --filename "$1&memory_windows=1" --rw randrw --bs "$2" --iodepth 16 --size $BENCH --quiet --output-format json)
  jq -c '.jobs[0] | { reads: .read.total_ios, writes: .write.total_ios, total_err, rdma }' <<<"$json"
  count() { jq ".jobs[0].$1" <<<"$json"; }
  expect 'errors' 0 "$(count total_err)"
  reads=$(count read.total_ios) writes=$(count write.total_ios) keyed=$reads
  [ "$2" = 4k ] || keyed=$((reads + writes))
  binds=$(count rdma.binds)
  # Connect's data are in its capsule.
  expect 'windows bound' "$keyed" "$binds"
  expect 'SENDs' $((reads + writes + 1)) "$(count rdma.sends)"
  expect 'invalidations of ours' $(($3 * keyed)) "$(count rdma.invalidations)"
  expect 'work requests' $((reads + writes + 1 + keyed + $3 * keyed)) "$(count rdma.work_requests)"
  expect 'signalled' "$(count rdma.posts)" "$(count rdma.signalled)"
  [ "$(count rdma.registrations)" -le 4 ]
}
for size in 4k 64k; do
  check "windows: the kernel target closes them; work requests for I/O of $size" windows_counts "$LINUX?nsid=1" $size 0
done
for size in 4k 64k 1m; do check "windows: the library verifies at $size" bench "$LINUX?nsid=1&memory_windows=1" $size 16; done
check 'windows: a full queue, spinning' bench "$LINUX?nsid=1&memory_windows=1" 4k 127 --busy-poll 50

# connect NQN [ARGS]: makes a ublk device for each namespace; their names are what `device NSID` says.
connect() {
  nvmf-initiator "${RUN[@]}" connect "${AT[@]}" -n "$1" --block ublk -c 1 "${@:2}"
  nvmf-initiator "${RUN[@]}" list -o json >"$SUITE_TMP/list"
  nvmf-initiator "${RUN[@]}" list -v
}
device() { jq -r ".controllers[].namespaces[] | select(.nsid == $1).device" "$SUITE_TMP/list"; }
attach() {
  connect $NQN -i 4 "$@"
  local nsid
  for nsid in 1 2; do wait_until 10 test -b "$(device $nsid)"; done
}
check 'ublk: connect, four queues' attach
identify() {
  nvmf-initiator "${RUN[@]}" id-ctrl "$(device 1)" | tee /dev/stderr | grep -qi linux
  nvmf-initiator "${RUN[@]}" id-ns "$(device 2)"
}
check 'ublk: id-ctrl, id-ns' identify
verify() { fio_verify "$(device "$1")" "--bs=$2" --size=$SIZE; }
for nsid in 1 2; do
  for size in 4k 64k 1m; do check "ublk: fio verifies namespace $nsid at $size" verify $nsid $size; done
done
files() {
  local disk
  disk=$(device 1)
  wipefs -aq "$disk"
  mkfs.ext4 -q "$disk"
  mkdir -p /mnt/rdma
  mount "$disk" /mnt/rdma
  fio_verify /mnt/rdma/file --size=$SIZE --bs=64k --fsync=16
  umount /mnt/rdma
}
check 'ublk: mkfs.ext4, mount, fio verify' files
discard() {
  local disk
  disk=$(device 1)
  dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct status=none
  blkdiscard -o 0 -l $((2 << 20)) "$disk"
  blkdiscard -z -o $((2 << 20)) -l $((2 << 20)) "$disk"
  cmp -n $((4 << 20)) "$disk" /dev/zero
}
check 'ublk: discard and write zeroes' discard

writes() { awk '{ print $5 }' "/sys/block/$(basename "$(device 1)")/stat"; }
wrote() { [ "$(writes)" -gt "$1" ]; }
# under_load CMD: runs CMD while fio verifies namespace 1; fio must not see it.
under_load() {
  local load before
  before=$(writes)
  fio_verify "$(device 1)" --size=$LOAD --time_based --runtime=5 --allow_file_create=0 >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 30 wrote $((before + 100))
  "$@"
  # Still going, and going on.
  kill -0 $load
  wait $load || { cat "$SUITE_TMP/load" && return 1; }
}
state() { nvmf-initiator "${RUN[@]}" list -o json | jq -r '.controllers[].state'; }
is() { [ "$(state)" = "$1" ]; }
cut() {
  nvmet_unlink 1 $NQN
  wait_until 20 lost
  nvmet_link 1 $NQN
}
lost() { state | tee /dev/stderr | grep -qvx live; }
check 'ublk: the target is disabled and enabled again under fio verify' under_load cut

daemon() { pgrep -f -- "--run-dir $SUITE_TMP/run daemon"; }
another() { daemon | grep -qv "^$1\$"; }
murder() {
  local old
  old=$(daemon | head -n 1)
  kill -KILL "$old"
  wait_until 20 another "$old"
}
check 'ublk: kill -9 of the daemon under fio verify' under_load murder
detach() {
  nvmf-initiator "${RUN[@]}" disconnect -n "$1"
  expect 'controllers' 0 "$(nvmf-initiator "${RUN[@]}" list -o json | jq '.controllers | length')"
}
check 'ublk: disconnect' detach $NQN

# The same device over windows. Those of a domain (pd) count as its users, beside registrations and queue pairs; the kernel's own domains
# have no context (ctxn).
users() { rdma resource show pd | sed -nE 's/.* users ([0-9]+) ctxn .*/\1/p' | awk '{ sum += $1 } END { print sum + 0 }'; }
windowed() {
  attach --memory-windows
  [ "$(users)" -ge $((4 * 127)) ]
}
check 'windows: ublk, four queues, with a window for each command' windowed
for size in 4k 64k; do check "windows, ublk: fio verifies at $size" verify 1 $size; done
check 'windows, ublk: the target is disabled and enabled again under fio verify' under_load cut
check 'windows, ublk: kill -9 of the daemon under fio verify' under_load murder
no_users() { [ "$(users | tee /dev/stderr)" = 0 ]; }
detach_windows() {
  detach $NQN
  wait_until 8 no_users
  # What an idle daemon has, it gives up when it ends, after 10 s: it has not ended.
  daemon
}
check 'windows, ublk: disconnect, and none is left on the device' detach_windows
away() {
  nvmet_clear
  wait_until 40 clean
}
# What the device has for processes: nothing but its own queue pair.
clean() { rdma resource show | tee /dev/stderr | grep -q 'qp 1 cm_id 0 mr 0 ctx 0'; }
check 'the kernel target goes, and nothing is left on the device' away

CONFIG=$SUITE_TMP/target.toml
configure() {
  truncate -s 128M /dev/shm/store
  cat >"$CONFIG" <<TOML
listen = ["rdma://$HERE:4420", "tcp://127.0.0.1:4420"]
[[subsystem]]
nqn = "$OURS"
allow-any-host = true
[[subsystem.namespace]]
nsid = 1
kind = "file"
path = "/dev/shm/store"
TOML
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
  wait_until 20 test -s "$SUITE_TMP/ready"
}
prepare 'our target, on both transports' configure
check 'discover over RDMA finds it' nvmf-initiator "${RUN[@]}" discover "${AT[@]}"
for size in 4k 64k 1m; do check "library, ours against ours, $size" bench "nvme+rdma://$HERE/$OURS?nsid=1" $size 16; done
for size in 4k 64k 1m; do check "windows, ours against ours, $size" bench "nvme+rdma://$HERE/$OURS?nsid=1&memory_windows=1" $size 16; done
for size in 4k 64k; do
  check "windows, ours against ours: work requests for I/O of $size" windows_counts "nvme+rdma://$HERE/$OURS?nsid=1" $size 0
done
# between FAULT: a target that does not do, or undoes, what a host relies on; ours is behind it.
BETWEEN="nvme+rdma://$HERE:4422/$OURS?nsid=1&queue_size=32"
between() {
  start between rdma-peer between $HERE:4422 $HERE:4420 "$1"
  wait_until 20 grep -q listening "$SUITE_OUT/between.log"
}
keeps() {
  between keep
  windows_counts "$BETWEEN" 64k 1
  bench "$BETWEEN&memory_windows=1" 64k 16
  stop between KILL
}
check 'windows: a target that closes none: this host does, before a command ends' keeps
# misuse FAULT DEPTH SAID [HEARD]: reads, and writes in capsules, until the peer has done it and SAID so, and on over a new association, of whose
# reason the host says HEARD.
misuse() {
  between "$1"
  nvmf-bench --filename "$BETWEEN&memory_windows=1&reconnect_delay=1" --rw randrw --bs 4k --iodepth "$2" --size $BENCH --quiet \
    --output-format json 2>"$SUITE_TMP/heard" | jq -e '.jobs[0].total_err == 0'
  cat "$SUITE_OUT/between.log" "$SUITE_TMP/heard"
  grep -q "$3" "$SUITE_OUT/between.log"
  grep -q "${4:-}" "$SUITE_TMP/heard"
  stop between KILL
}
DEAD='WRITE with the key of a command that ended is refused: remote access'
check 'windows: a key that this host closed is dead when its command ends' misuse keep-and-use 1 "$DEAD"
check 'windows: a key that the target closed is dead when its command ends' misuse use 1 "$DEAD"
check "windows: an answer that closes another command's window" misuse steal 16 'makes another key invalid' 'invalidated key .* which it was not asked to'
check 'windows: an answer that comes again before its window is closed' misuse twice 16 'comes twice' 'which is not open'
ours() {
  # All that discovery finds over RDMA.
  nvmf-initiator "${RUN[@]}" connect-all "${AT[@]}" --block ublk -c 1
  nvmf-initiator "${RUN[@]}" list -o json >"$SUITE_TMP/list"
  expect 'controllers' 1 "$(jq '.controllers | length' "$SUITE_TMP/list")"
  wait_until 10 test -b "$(device 1)"
}
check 'connect-all over RDMA' ours
for size in 4k 64k 1m; do check "ublk, ours against ours: fio verifies at $size" verify 1 $size; done
# A host over TCP writes the upper half while one over RDMA writes the lower.
both() {
  local half=$((64 << 20)) tcp
  nvmf-bench --filename "nvme+tcp://127.0.0.1:4420/$OURS?nsid=1" --rw randwrite --bs 4k --iodepth 16 --offset $half --size $BENCH \
    --verify crc32c --quiet >"$SUITE_TMP/tcp" 2>&1 &
  tcp=$!
  fio_verify "$(device 1)" --size=$BENCH
  wait $tcp || { cat "$SUITE_TMP/tcp" && return 1; }
  grep 'verify: [1-9]' "$SUITE_TMP/tcp"
  # What one wrote the other reads.
  dd if="$(device 1)" of="$SUITE_TMP/upper" bs=1M skip=64 count=4 iflag=direct status=none
  cmp -n $((4 << 20)) "$SUITE_TMP/upper" /dev/shm/store 0 $half
}
check 'hosts over RDMA and TCP on one namespace at once' both
kills() {
  stop target KILL
  wait_until 20 lost
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready2"
  wait_until 30 test -s "$SUITE_TMP/ready2"
}
check 'kill -9 and restart of our target under fio verify' under_load kills
check 'kill -9 of the daemon under fio verify, ours against ours' under_load murder
check 'disconnect from ours' detach "$OURS"
round() {
  nvmf-initiator "${RUN[@]}" connect "${AT[@]}" -n $OURS --block none
  nvmf-initiator "${RUN[@]}" disconnect -n $OURS
}
rounds() {
  local n
  for ((n = 0; n < ROUNDS * NVMF_SOAK; n++)); do round; done
  stop target
  wait_until 40 clean
}
check 'connections leave nothing behind' rounds
