#!/bin/bash
# loopback.sh: our initiator against our target on this machine and its own kernel: block devices by FUSE with a loop device on top.
# guest: host
if [ -z "${OWN_MOUNTS:-}" ]; then
  # Mounts of its own: a process elsewhere that takes a copy of this machine's mounts would keep the devices in use.
  own=(unshare --mount env OWN_MOUNTS=1 "PATH=$PATH" "GUEST_KIND=$GUEST_KIND" "GUEST_LIB=$GUEST_LIB" "SUITE_OUT=$SUITE_OUT" "NVMF_SOAK=${NVMF_SOAK:-1}")
  [ "$(id -u)" = 0 ] || own=(sudo -n "${own[@]}")
  exec "${own[@]}" bash "$0"
fi
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite loopback

NQN=nqn.2024-01.org.example:loopback
# An address that is this run's alone: no other target on this machine is in the way, nor a port that it gave to a client.
ADDRESS=127.$((64 + RANDOM % 128)).$((RANDOM % 256)).$((1 + RANDOM % 254))
AT=(-t tcp -a "$ADDRESS" -s 4420)
RUN=$SUITE_TMP/run
CONFIG=$SUITE_TMP/target.toml
STORE=$SUITE_TMP/store
FS=$SUITE_TMP/fs
mkdir "$STORE" "$FS"
on_failure "$RUN/daemon.log"
ours() { nvmf-initiator --run-dir "$RUN" --etc-nvme "$SUITE_TMP/etc" "$@"; }

# processes ROLE: those of this run's keeper or daemon. The pattern does not match itself.
processes() { timeout 5 pgrep -f -- "[-]-run-dir $RUN .*$1"; }
# loop_of NAME: the loop device on the FUSE file of this name.
loop_of() { grep -lx -- "/$1" /sys/block/loop*/loop/backing_file 2>/dev/null | cut -d/ -f4; }

ended() { [ -z "$(processes daemon)$(processes keeper)" ]; }

# clean_up: takes away whatever a failure may have left: nothing of it may go on in this machine's kernel.
clean_up() {
  local role process name number
  local names=()
  for name in "$RUN"/by-id/*; do [ ! -L "$name" ] || names+=("${name##*/}"); done
  while mountpoint -q "$FS"; do umount "$FS" || umount --lazy "$FS" || break; done
  # By force, and while the target is there: a device without one holds its I/O until ctrl_loss_tmo.
  timeout 30 nvmf-initiator --run-dir "$RUN" disconnect --all --force >/dev/null 2>&1
  # Each would start the other again: the daemon is stopped meanwhile.
  for process in $(processes daemon); do kill -STOP "$process"; done
  for role in keeper daemon; do
    for process in $(processes "$role"); do kill -KILL "$process"; done
  done
  wait_until 10 ended
  for name in "${names[@]}"; do
    for number in $(loop_of "$name"); do losetup --detach "/dev/$number"; done
  done
  kill -KILL "$(pid target)" 2>/dev/null
  while mountpoint -q "$STORE"; do wait_until 10 umount "$STORE" || umount --lazy "$STORE" || break; done
}
at_end clean_up

# config SIZE-OF-LARGE-BLOCKS [EXTRA-NAMESPACE-LINES]
config() {
  truncate -s "$1" "$STORE/large-blocks"
  cat >"$CONFIG" <<TOML
listen = ["tcp://$ADDRESS:4420"]
[[subsystem]]
nqn = "$NQN"
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
block-size = 4096
${2:-}
TOML
}
storage() {
  # A disk with 512 byte sectors, which direct I/O can address, whatever this machine has.
  truncate -s 700M "$SUITE_TMP/disk"
  mkfs.xfs -q "$SUITE_TMP/disk"
  mount -o loop "$SUITE_TMP/disk" "$STORE"
  config 400M
  nvmf-target --config "$CONFIG" --check
}
peers() {
  [ -c /dev/fuse ] || modprobe fuse
  [ -c /dev/loop-control ] || modprobe loop
  ls -l /dev/fuse /dev/loop-control
}
check 'this machine has FUSE and loop devices' peers
check 'a configuration that passes --check' storage
# start_target: nothing of it lies elsewhere on this machine.
start_target() { start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready" --rpc none --state-dir none; }
start_target
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

# namespace NSID KEY: what `list` knows of a namespace; an error where it knows nothing.
namespace() { ours list --json | jq -er --argjson nsid "$1" --arg key "$2" '.controllers[].namespaces[] | select(.nsid == $nsid)[$key]'; }
disk() { namespace "$1" device; }
attach() {
  ours connect "${AT[@]}" -n $NQN --block fuse -c 1 "$@" | tee "$SUITE_TMP/connected"
  test -b "$(disk 1)"
  test -b "$(disk 2)"
}
prints() {
  attach
  expect 'the first line' "$(disk 1) (fuse, nvmf0 namespace 1)" "$(head -n 1 "$SUITE_TMP/connected")"
  expect 'the second line' "$(disk 2) (fuse, nvmf0 namespace 2)" "$(tail -n +2 "$SUITE_TMP/connected")"
}
check 'connect prints the devices' prints
twice() { ours connect "${AT[@]}" -n $NQN; }
refuse 'a second connect' "connected already, as nvmf0; --duplicate-connect" twice
by_id() {
  local nsid name
  for nsid in 1 2; do
    name=$RUN/by-id/nvme-uuid.$(namespace "$nsid" uuid)
    expect 'list' "$name" "$(namespace "$nsid" by_id)"
    expect 'the link' "$(disk "$nsid")" "$(readlink "$name")"
  done
}
check 'stable names lead to the devices' by_id
blocks() {
  expect 'namespace 1' 512 "$(blockdev --getss "$(disk 1)")"
  expect 'namespace 2' 4096 "$(blockdev --getss "$(disk 2)")"
  expect 'its size' $((400 << 20)) "$(blockdev --getsize64 "$(disk 2)")"
}
check 'blocks of 512 and of 4096 bytes' blocks
lists() {
  local line
  ours list | tee "$SUITE_TMP/list"
  expect 'header and two namespaces' 3 "$(wc -l <"$SUITE_TMP/list")"
  line=$(tail -n 1 "$SUITE_TMP/list")
  [[ $line == "$(disk 2) "*nvmf0*2*"419.43 MB"*"4096 B"*fuse*live*"$NQN" ]]
  ours list -o json | jq -e --arg nqn $NQN '.controllers | length == 1 and .[0].subnqn == $nqn and .[0].state == "live"'
}
check 'list, list -o json' lists

# Data.
verify() { fio_verify "$(disk "$1")" "--bs=$2" --size=32M; }
for nsid in 1 2; do
  for bs in 4k 64k 1m; do check "fio verifies namespace $nsid with $bs blocks" verify $nsid $bs; done
done
small() { fio_verify "$(disk 1)" --bs=512 --size=1M; }
check 'fio verifies single 512 byte blocks' small
make_fs() {
  wipefs -aq "$(disk 2)"
  "mkfs.$1" -q "$(disk 2)"
  mount "$(disk 2)" "$FS"
}
allocated_kib() { du -k "$STORE/large-blocks" | cut -f1; }
trims_to() {
  fstrim -v "$FS"
  [ "$(allocated_kib)" -lt "$1" ]
}
on_fs() {
  local full
  make_fs "$1"
  fio_verify "$FS/file" --size=32M --bs=4k --fsync=64
  fio_verify "$FS/file" --size=32M --bs=64k
  fio_verify "$FS/file" --size=32M --bs=1m
  # What a file system gives back shows in the file that is served.
  dd if=/dev/urandom of="$FS/gone" bs=1M count=64 conv=fsync status=none
  full=$(allocated_kib)
  rm "$FS/gone"
  sync -f "$FS"
  # XFS frees the blocks of a removed file some time later.
  wait_until 20 trims_to $((full - 60000))
  umount "$FS"
}
for fs in ext4 xfs; do check "$fs: mkfs, mount, fio verify, fstrim frees blocks of the file" on_fs $fs; done
discard() {
  local disk
  disk=$(disk 2)
  dd if=/dev/urandom of="$disk" bs=1M count=8 oflag=direct status=none
  blkdiscard -o 0 -l $((4 << 20)) "$disk"
  blkdiscard -z -o $((4 << 20)) -l $((4 << 20)) "$disk"
  cmp -n $((8 << 20)) "$disk" /dev/zero
  cmp -n $((8 << 20)) "$STORE/large-blocks" /dev/zero
}
check 'discard and write zeroes reach the file' discard

# Faults. What happens, happens while fio writes, and fio has to end without an error.
writes() { awk '{ print $5 }' "/sys/block/$(basename "$1")/stat"; }
wrote() { [ "$(writes "$1")" -gt "$2" ]; }
# load FILE [FIO-ARGS]: fio verify in the background ($load) on namespace 2 or on a file on it, once it has written something.
# Threads, since fio's processes leave the check's process group and would survive it.
load() {
  local disk before
  disk=$(disk 2)
  before=$(writes "$disk")
  fio_verify "$1" --size=48M --thread "${@:2}" >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 20 wrote "$disk" $((before + 300))
}
under_load() {
  load "$(disk 2)" --allow_file_create=0 --time_based --runtime=4
  kill -0 "$load"
  "$@"
  # It ends well only when all that it wrote, before and after, could be written and read back.
  wait "$load" || { cat "$SUITE_TMP/load" && return 1; }
}
restart() {
  stop target "$1"
  rm -f "$SUITE_TMP/ready"
  start_target
  wait_until 20 test -s "$SUITE_TMP/ready"
}
names() { ls "$RUN/by-id"; readlink "$RUN"/by-id/*; }
NAMES=$(names)
same_names() { expect 'stable names' "$NAMES" "$(names)"; }
for round in $(seq "$NVMF_SOAK"); do
  check "kill -9 of the target under fio verify, and a restart ($round)" under_load restart KILL
  check "SIGTERM to the target under fio verify, and a restart ($round)" under_load restart TERM
done
check 'devices and stable names are those of before' same_names
another() { processes 'daemon' | grep -qvx "$1"; }
murder() {
  local old
  old=$(processes daemon)
  kill -KILL "$old"
  wait_until 30 another "$old"
  wait_until 30 disk 2
}
# The kernel queues requests again that its dead server had taken from Linux 6.9 on.
if printf '6.9\n%s\n' "$(uname -r)" | sort -CV; then
  for round in $(seq "$NVMF_SOAK"); do check "kill -9 of the daemon under fio verify ($round)" under_load murder; done
  check 'devices and stable names are those of before it' same_names
  both() {
    restart KILL
    murder
  }
  check 'kill -9 of the target and then of the daemon under fio verify' under_load both
fi

# Disconnecting.
mounted() { make_fs ext4; }
check 'ext4, mounted' mounted
by_nqn() { ours disconnect -n $NQN; }
refuse 'disconnect of a mounted device' "^nvmf-initiator: /dev/loop[0-9]+ is in use: .*mounted on $FS" by_nqn
status_of() {
  local status=0
  "$@" || status=$?
  echo "exit code $status"
}
busy() {
  [ "$(status_of by_nqn | tail -n 1)" = 'exit code 4' ]
  # Nothing has changed, for either namespace.
  disk 1
  disk 2
  fio_verify "$FS/file" --size=8M
}
check 'it has exit code 4, and everything goes on' busy
leave() { umount "$FS"; }
check 'unmount' leave
by_device() {
  local device
  device=$(disk 2)
  ours disconnect -d "$device"
  wait_until 10 gone "$device"
  [ -z "$(ls "$RUN/by-id")" ]
  ours list --json | jq -e '.controllers == []'
}
gone() { ! losetup "$1"; }
check 'disconnect by device: devices and stable names are gone' by_device
check 'connect again' attach
same_ids() { expect 'stable names' "$(grep nvme <<<"$NAMES" | grep -v /)" "$(ls "$RUN/by-id")"; }
check 'the stable names are those of before' same_ids
check 'ext4, mounted, again' mounted
cut_off() {
  local device
  device=$(disk 2)
  load "$FS/file" --time_based --runtime=30
  ours disconnect -n $NQN --force
  if wait "$load"; then echo 'fio saw nothing' && return 1; fi
  grep -i 'input/output error' "$SUITE_TMP/load"
  umount "$FS"
  wait_until 10 gone "$device"
}
check 'disconnect --force of a mounted device under load: I/O fails, the device goes' cut_off
unknown() { ours disconnect -n $NQN; }
refuse 'disconnect of what is not connected' 'not connected|nothing is connected' unknown

# Digests.
for digest in '-g' '-G' '-g -G'; do
  digests() {
    # shellcheck disable=SC2086 # two words
    attach $digest
    verify 1 4k
    verify 2 1m
    by_nqn
  }
  check "fio verifies with digests: $digest" digests
done

# Live changes.
check 'connect for live changes' attach
reload() {
  config "$@"
  kill -HUP "$(pid target)"
}
size_is() { [ "$(blockdev --getsize64 "$(disk 2)")" = "$1" ]; }
grown() {
  reload 480M
  wait_until 20 size_is $((480 << 20))
  # The new end of it works.
  fio_verify "$(disk 2)" --offset=440M --size=16M
}
grown_under_load() { under_load grown; }
check 'a file that grows makes the device grow, under load' grown_under_load
EXTRA=$(printf '[[subsystem.namespace]]\nnsid = 9\nkind = "file"\npath = "%s/added"\nsize = "16M"\n' "$STORE")
added() {
  reload 480M "$EXTRA"
  wait_until 20 disk 9
  fio_verify "$(disk 9)" --size=4M
  test -L "$(namespace 9 by_id)"
}
added_under_load() { under_load added; }
check 'a namespace is added, another under load' added_under_load
removed() {
  local device name
  device=$(disk 9)
  name=$(namespace 9 by_id)
  reload 480M
  wait_until 20 not_listed 9
  wait_until 10 gone "$device"
  [ ! -e "$name" ]
}
not_listed() { ! disk "$1"; }
removed_under_load() { under_load removed; }
check 'a namespace is removed, another under load' removed_under_load
verify_after() {
  verify 1 4k
  verify 2 64k
}
check 'fio verifies after that' verify_after

# The end.
end() {
  ours disconnect --all
  wait_until 20 ended
}
check 'with nothing connected the daemon ends by itself' end
drained() { stop target; }
check 'SIGTERM ends the target' drained
said_nothing_bad() { ! grep -E 'panicked| ERROR ' "$SUITE_OUT/target.log" "$RUN/daemon.log"; }
check 'the logs hold no panic and no error' said_nothing_bad
