#!/bin/bash
# pools.sh: the Linux kernel's NVMe/TCP host on volumes of a pool: file systems on them, growth, snapshots under load, grants and fencing, a full pool.
# guest: --uml --mem 1536 --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite pools

PREFIX=nqn.2024-01.org.example
FRIEND=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0001
STRANGER=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0002
STORE=/mnt/store
export NVMF_RPC=$SUITE_TMP/rpc.sock

# nqn VOLUME: the subsystem of a volume. connect VOLUME [HOST-NQN]
nqn() { printf '%s:p:%s' $PREFIX "$1"; }
connect() { nvme connect -t tcp -a 127.0.0.1 -s 4420 -n "$(nqn "$1")" -q "$2" -I "${2##*:}" -l 60; }
disk() { ns_dev "$(nqn "$1")" 1; }
attach() { connect "$1" $FRIEND && wait_until 20 disk "$1"; }
detach() { nvme disconnect -n "$(nqn "$1")"; }
bytes() { blockdev --getsize64 "$(disk "$1")"; }

storage() {
  scratch_fs xfs 700M $STORE
  cat >"$SUITE_TMP/t.toml" <<TOML
listen = ["tcp://127.0.0.1:4420"]
[api]
socket = "$NVMF_RPC"
state-dir = "$SUITE_TMP/state"
[pool.p]
path = "$STORE"
nqn-prefix = "$PREFIX"
overcommit = "warn"
TOML
}
check 'storage' storage
serve() {
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --config "$SUITE_TMP/t.toml" --ready-file "$SUITE_TMP/ready"
}
serve
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

make() {
  nvmfctl volume create p data --size 128M --host $FRIEND
  attach data
  [ "$(bytes data)" = $((128 << 20)) ]
  mkfs.ext4 -q "$(disk data)"
  mkdir -p /mnt/data /mnt/copy
  mount "$(disk data)" /mnt/data
  seq 100000 >/mnt/data/numbers
  sync
}
check 'a volume is made, connected, formatted and mounted' make
nvmfctl volume create p guarded --size 16M --host $FRIEND >/dev/null
refuse 'a host that was not granted it' 'Input/output error|failed' connect guarded $STRANGER
nvmfctl volume delete p guarded >/dev/null

grown() { [ "$(bytes data)" = $((256 << 20)) ]; }
grow() {
  nvmfctl volume resize p data 256M
  wait_until 20 grown
  resize2fs "$(disk data)"
  [ "$(df --output=size -B1M /mnt/data | tail -1)" -gt 200 ]
  cmp /mnt/data/numbers <(seq 100000)
}
check 'it grows under the mounted file system' grow

# A journal that was cut at an instant is what a file system recovers from: a copy of several instants is what it does not.
loaded() { [ "$(stat -c %b /mnt/data/load.0.0)" -gt "$1" ]; }
under_load() {
  local round load
  fio --name=load --directory=/mnt/data --size=48M --direct=1 --rw=randwrite --bs=4k --iodepth=8 --ioengine=io_uring --fsync=64 \
    --thread --time_based --runtime=120 --output="$SUITE_TMP/fio.log" &
  load=$!
  for round in 1 2 3; do
    wait_until 60 loaded $((round * 500)) # in sectors: it writes between one snapshot and the next
    seq "$((round * 1000))" >"/mnt/data/round$round"
    sync "/mnt/data/round$round"
    nvmfctl --json snapshot create p "data=s$round" >"$SUITE_TMP/s$round.json"
    grep -q pause_us "$SUITE_TMP/s$round.json"
  done
  kill -KILL $load
  wait $load || true
  for round in 1 2 3; do
    nvmfctl volume create p "copy$round" --from-snapshot "s$round" --host $FRIEND
    attach "copy$round"
    mount "$(disk "copy$round")" /mnt/copy
    cmp /mnt/copy/numbers <(seq 100000)
    cmp "/mnt/copy/round$round" <(seq "$((round * 1000))")
    [ ! -e "/mnt/copy/round$((round + 1))" ]
    umount /mnt/copy
    e2fsck -fn "$(disk "copy$round")"
    detach "copy$round"
    nvmfctl volume delete p "copy$round"
  done
}
CHECK_TIMEOUT_S=180 check 'snapshots under load hold what was synced, nothing later, and a sound file system' under_load

stop target KILL
serve
check 'the target is ready again after a kill' wait_until 30 test -s "$SUITE_TMP/ready"
again() {
  seq 5000 >/mnt/data/after
  sync /mnt/data/after
  nvmfctl snapshot list | grep -q s3
}
check 'the mounted volume goes on after it, and snapshots are there' again

hog() {
  nvmfctl volume create p hog --size 2G --host $FRIEND
  attach hog
}
check 'more is promised than there is, with a warning' hog
fill() { dd if=/dev/zero of="$(disk hog)" bs=1M oflag=direct; }
refuse 'a full pool: the writer gets ENOSPC' 'No space left on device' fill
reads() { dd if=/mnt/data/numbers of=/dev/null bs=1M iflag=direct; }
check 'a full pool: others read on' reads
freed() {
  detach hog
  nvmfctl volume delete p hog
  dd if=/dev/urandom of=/mnt/data/more bs=1M count=32 oflag=direct
  sync /mnt/data/more
}
check 'a full pool: writes go on once there is room' freed

fence() {
  nvmfctl volume revoke p data $FRIEND
  # The call has returned: no controller is left at the target, whatever the host still tries.
  nvmfctl --json volume list | jq -e '.[0].name == "data" and .[0].connected_hosts == [] and .[0].hosts == []'
}
check 'a revoked host is cut off when the call returns' fence
leave() {
  umount -l /mnt/data
  nvme disconnect-all
}
check 'it lets go of the volume' leave
refuse 'and is not let in again' 'Input/output error|failed' connect data $FRIEND
gone() {
  nvmfctl volume delete p data
  nvmfctl volume list
}
check 'a volume without hosts is deleted' gone
stopped() {
  stop target
}
check 'the target ends when it is told to' stopped
no_panic() { ! grep 'panicked' "$SUITE_OUT/target.log"; }
check 'it never panicked' no_panic
