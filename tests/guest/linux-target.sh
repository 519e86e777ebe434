#!/bin/bash
# linux-target.sh: our initiator, in nvmf-bench, against the Linux kernel's NVMe/TCP target.
# guest: --uml --mem 1536 --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite linux-target

NQN=nqn.2024-01.org.example:kernel
CLOSED=nqn.2024-01.org.example:closed
PLACE=nvme+tcp://127.0.0.1:4420/$NQN

target() {
  nvmet_subsystem $NQN
  nvmet_namespace $NQN 1 "$(scratch_disk 128M)"
  truncate -s 128M /dev/shm/large-blocks
  nvmet_namespace $NQN 2 "$(losetup --find --show --sector-size 4096 /dev/shm/large-blocks)"
  nvmet_subsystem $CLOSED attr_allow_any_host=0
  nvmet_namespace $CLOSED 1 "$(scratch_disk 16M)"
  nvmet_port 1 tcp 127.0.0.1 4420
  nvmet_link 1 $NQN
  nvmet_link 1 $CLOSED
  wait_until 10 nvme discover -t tcp -a 127.0.0.1 -s 4420
}
check 'a kernel target with 512 and 4096 byte blocks' target

# verify NSID BS DEPTH [BENCH-ARGS]: writes, reads back, compares; fails on any mismatch or error.
verify() {
  nvmf-bench --filename "$PLACE?nsid=$1" --rw randwrite --bs "$2" --iodepth "$3" --size "${SIZE:-16m}" --verify crc32c --quiet "${@:4}" |
    tee /dev/stderr | grep -q 'verify: [1-9]'
}
for nsid in 1 2; do
  check "namespace $nsid, 4 KiB, one at a time" verify $nsid 4k 1
  check "namespace $nsid, 4 KiB, 32 in flight" verify $nsid 4k 32
  check "namespace $nsid, 64 KiB" verify $nsid 64k 16
  check "namespace $nsid, 1 MiB" verify $nsid 1m 8
done
small() { SIZE=1m verify 1 512 16; }
check '512 byte blocks' small
check 'a full queue' verify 1 4k 127
check 'header digest' verify 1 4k 16 --hdr-digest=1
check 'data digest, 64 KiB' verify 1 64k 16 --data-digest=1
check 'both digests, 1 MiB' verify 2 1m 4 --hdr-digest=1 --data-digest=1
check 'two jobs, two connections' verify 1 4k 16 --numjobs 2
mixed() { nvmf-bench --filename "$PLACE?nsid=1" --rw randrw --bs 4k --iodepth 16 --size 16m --quiet; }
check 'reads and writes mixed' mixed

misaligned() { nvmf-bench --filename "$PLACE?nsid=2" --rw read --bs 512 --quiet; }
refuse 'a block size below that of the namespace' 'multiples of the place' misaligned
missing() { nvmf-bench --filename "$PLACE?nsid=7" --rw read --quiet; }
refuse 'a namespace that there is not' 'no active namespace 7' missing
unknown() { nvmf-bench --filename "nvme+tcp://127.0.0.1:4420/$NQN-no?nsid=1" --rw read --quiet; }
refuse 'a subsystem that there is not' 'Connect Invalid Parameters|01/82h' unknown
closed() { nvmf-bench --filename "nvme+tcp://127.0.0.1:4420/$CLOSED?nsid=1" --rw read --quiet; }
refuse 'a subsystem that does not allow us' 'Connect Invalid Host|01/84h' closed
nobody() { nvmf-bench --filename "nvme+tcp://127.0.0.1:4499/$NQN?nsid=1" --rw read --quiet; }
refuse 'an address where nobody listens' '[Cc]onnection refused' nobody

# The link goes while data is written and verified: the I/O is held, and goes on when the target is back.
progress() { [ "$(awk '{ print $5 }' "/sys/block/$1/stat")" -gt "$2" ]; }
interrupted() {
  local disk before bench
  disk=$(basename "$(cat "$NVMET/subsystems/$NQN/namespaces/1/device_path")")
  before=$(awk '{ print $5 }' "/sys/block/$disk/stat")
  nvmf-bench --filename "$PLACE?nsid=1&reconnect_delay=1" --rw randwrite --bs 4k --iodepth 16 --size 64m --runtime 6 --time_based --verify crc32c --quiet >"$SUITE_TMP/bench" 2>&1 &
  bench=$!
  wait_until 20 progress "$disk" $((before + 200))
  nvmet_unlink 1 $NQN
  nvmet_link 1 $NQN
  wait $bench || { cat "$SUITE_TMP/bench" && return 1; }
  tee /dev/stderr <"$SUITE_TMP/bench" | grep -q 'verify: [1-9]'
}
check 'the target goes and comes back under verified writes' interrupted
check 'everything is removed' nvmet_clear
