#!/bin/bash
# attachments.sh: many volumes attached to this machine at once (20; 200 in the long form), FUSE with loop on its own kernel: the deaths of the
# daemon and of the target under I/O on all of them, what they take, and that nothing of them is left.
# guest: host
if [ -z "${OWN_MOUNTS:-}" ]; then
  # Mounts of its own: a process elsewhere that takes a copy of this machine's mounts would keep the devices in use.
  own=(unshare --mount env OWN_MOUNTS=1 "PATH=$PATH" "GUEST_KIND=$GUEST_KIND" "GUEST_LIB=$GUEST_LIB" "SUITE_OUT=$SUITE_OUT" "NVMF_SOAK=${NVMF_SOAK:-1}")
  [ "$(id -u)" = 0 ] || own=(sudo -n "${own[@]}")
  exec "${own[@]}" bash "$0"
fi
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite attachments

COUNT=$((NVMF_SOAK > 1 ? 200 : 20))
ADDRESS=127.$((64 + RANDOM % 128)).$((RANDOM % 256)).$((1 + RANDOM % 254))
HOST=nqn.2024-01.org.example:attachments-host
RUN=$SUITE_TMP/run
STORE=$SUITE_TMP/store
CONFIG=$SUITE_TMP/target.toml
RPC=$SUITE_TMP/rpc.sock
mkdir "$STORE"
on_failure "$RUN/daemon.log"
ours() { nvmf-initiator --run-dir "$RUN" --etc-nvme "$SUITE_TMP/etc" "$@"; }
processes() { timeout 5 pgrep -f -- "[-]-run-dir $RUN .*$1"; }
ended() { [ -z "$(processes daemon)$(processes keeper)" ]; }
# loops_of FILE: how many loop devices there are on the FUSE files whose names are the lines of FILE.
loops_of() { cat /sys/block/loop*/loop/backing_file 2>/dev/null | sed 's|^/||' | grep -cxFf "$1"; }

# clean_up: takes away whatever a failure may have left: nothing of it may go on in this machine's kernel.
clean_up() {
  local role process file
  ls "$RUN/by-id" >"$SUITE_TMP/left" 2>/dev/null
  kill -CONT "$(pid target)" 2>/dev/null
  timeout 60 nvmf-initiator --run-dir "$RUN" disconnect --all --force >/dev/null 2>&1
  # Each would start the other again: the daemon is stopped meanwhile.
  for process in $(processes daemon); do kill -STOP "$process"; done
  for role in keeper daemon; do
    for process in $(processes "$role"); do kill -KILL "$process"; done
  done
  wait_until 10 ended
  for file in /sys/block/loop*/loop/backing_file; do
    if sed 's|^/||' "$file" 2>/dev/null | grep -qxFf "$SUITE_TMP/left"; then losetup --detach "/dev/$(cut -d/ -f4 <<<"$file")"; fi
  done
  kill -KILL "$(pid target)" 2>/dev/null
  for file in "$STORE/pool" "$STORE"; do
    while mountpoint -q "$file"; do wait_until 10 umount "$file" || umount --lazy "$file" || break; done
  done
}
at_end clean_up

# --- the pool, the target, a first volume that keeps the daemon there ---------------------------------------------------

storage() {
  [ -c /dev/fuse ] || modprobe fuse
  [ -c /dev/loop-control ] || modprobe loop
  # In memory: what is counted here is not how fast a disk is.
  mount -t tmpfs none "$STORE"
  truncate -s 8G "$STORE/disk"
  mkfs.xfs -q "$STORE/disk"
  mkdir "$STORE/pool"
  cat >"$CONFIG" <<TOML
listen = ["tcp://$ADDRESS:4420"]
[api]
socket = "$RPC"
state-dir = "$SUITE_TMP/target"
[pool.many]
path = "$STORE/pool"
nqn-prefix = "nqn.2024-01.org.example"
overcommit = "allow"
TOML
  mount -o loop "$STORE/disk" "$STORE/pool"
  nvmf-target --config "$CONFIG" --check
}
start_target() {
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
}
check 'a pool on XFS, in memory' storage
start_target
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

ctl() { nvmfctl --socket "$RPC" "$@"; }
# all CMD [ARGS]: runs it for each of the numbers at the same time, with the number in the place of %; each must succeed.
all() {
  local number failed=0 jobs=()
  for number in $(seq $COUNT); do
    "${@//%/$number}" >>"$SUITE_TMP/all" 2>&1 &
    jobs+=($!)
  done
  for number in "${jobs[@]}"; do wait "$number" || failed=$((failed + 1)); done
  [ $failed = 0 ] || { tail -n 20 "$SUITE_TMP/all" && echo "$failed of $COUNT failed: $*" && return 1; }
}
make_one() { ctl volume create many "$1" --size 64M --host $HOST; }
attach_one() { ours connect -t tcp -a "$ADDRESS" -s 4420 -n "nqn.2024-01.org.example:many:$1" -q $HOST --block fuse -c 1; }
detach_one() { ours disconnect -n "nqn.2024-01.org.example:many:$1"; }
first() {
  make_one first
  attach_one first
}
check 'a first volume is attached, and the daemon there' first
# devices: those of the volumes, one a line; the first volume aside.
devices() { ours list --json | jq -r '.controllers[] | select(.subnqn | endswith(":first") | not) | .namespaces[].device // empty'; }
live() { [ "$(ours list --json | jq '[.controllers[] | select(.state == "live")] | length')" = "$1" ]; }

# --- what is counted ----------------------------------------------------------------------------------------------------

files() { find "/proc/$1/fd" -type l | wc -l; }
threads() { find "/proc/$1/task" -mindepth 1 -maxdepth 1 | wc -l; }
# memory PID: what is its own, in KiB.
memory() { awk '$1 == "RssAnon:" { print $2 }' "/proc/$1/status"; }
who() { if [ "$1" = target ]; then pid target; else processes "$1" | head -n 1; fi; }
# counts: descriptors of each process, and what is mounted.
counts() {
  local name
  for name in target daemon keeper; do printf '%s %s\n' $name "$(files "$(who $name)")"; done
  # Of this suite, and FUSE wherever it is: others on this machine mount things too.
  printf 'mounts %s\n' "$(grep -c -e " $SUITE_TMP/" -e ' - fuse.nvmf ' /proc/self/mountinfo)"
}
same_counts() { diff "$1" <(counts); }
report() {
  local name
  for name in target daemon keeper; do
    printf '%-8s %4d descriptors, %3d threads, %6d KiB of memory\n' $name "$(files "$(who $name)")" "$(threads "$(who $name)")" "$(memory "$(who $name)")"
  done | tee -a "$SUITE_OUT/report"
}
below() { [ "$(memory "$(who "$1")")" -lt "$2" ]; }

# --- many volumes -------------------------------------------------------------------------------------------------------

make_all() {
  all make_one v%
  expect 'volumes' $COUNT "$(ctl --json volume list | jq '[.[] | select(.name | startswith("v"))] | length')"
}
attach_all() {
  all attach_one v%
  devices >"$SUITE_TMP/devices"
  expect 'devices' $COUNT "$(wc -l <"$SUITE_TMP/devices")"
  ls "$RUN/by-id" >"$SUITE_TMP/names"
  expect 'loop devices' $((COUNT + 1)) "$(loops_of "$SUITE_TMP/names")"
}
# use_all [FIO-ARGS]: writes to all at once and reads it back. Threads, since fio's processes would survive a check that fails.
use_all() {
  local jobs=() device
  while read -r device; do jobs+=("--name=${device##*/}" "--filename=$device"); done <"$SUITE_TMP/devices"
  fio --thread --direct=1 --ioengine=psync --rw=randwrite --bs=4k --size=2M --allow_file_create=0 --verify=crc32c --verify_fatal=1 \
    --verify_state_save=0 --output-format=json --output="$SUITE_OUT/fio.json" "$@" "${jobs[@]}"
  # It writes its remarks there too.
  sed -i '/^{/,$!d' "$SUITE_OUT/fio.json"
  jq -e '[.jobs[].error] | add == 0' "$SUITE_OUT/fio.json"
}
# under_load CMD: while all of them are written to.
writes() { sed 's|.*/||' "$SUITE_TMP/devices" | while read -r disk; do awk '{ print $5 }' "/sys/block/$disk/stat"; done | awk '{ sum += $1 } END { print sum }'; }
wrote() { [ "$(writes)" -gt "$1" ]; }
under_load() {
  local load before longest_ms
  before=$(writes)
  use_all --time_based --runtime=$((NVMF_SOAK > 1 ? 25 : 8)) --rate_iops=$((2000 / COUNT)) >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 30 wrote $((before + 20 * COUNT))
  "$@"
  # It ends well only when all that it wrote, before and after, could be written and read back.
  wait "$load" || { cat "$SUITE_TMP/load" && return 1; }
  longest_ms=$(jq '[.jobs[].write.clat_ns.max] | max / 1000000 | floor' "$SUITE_OUT/fio.json")
  printf '%s with %d devices under I/O: the longest write took %d ms\n' "$*" $COUNT "$longest_ms" | tee -a "$SUITE_OUT/report"
}
another() { processes daemon | grep -qvx "$1"; }
daemon_dies() {
  local old
  old=$(who daemon)
  kill -KILL "$old"
  wait_until 30 another "$old"
  wait_until 60 live $((COUNT + 1))
}
target_dies() {
  stop target KILL
  start_target
  wait_until 30 test -s "$SUITE_TMP/ready"
  wait_until 60 live $((COUNT + 1))
}
# What one that nobody uses takes: its connection with the memory for its queues.
rests() {
  report
  wait_until 30 below daemon $((32768 + 512 * COUNT))
  report
}
detach_all() {
  all detach_one v%
  ls "$RUN/by-id" >"$SUITE_TMP/left"
  expect 'what is attached' 1 "$(wc -l <"$SUITE_TMP/left")"
  grep -vxFf "$SUITE_TMP/left" "$SUITE_TMP/names" >"$SUITE_TMP/gone"
  expect 'their loop devices' 0 "$(loops_of "$SUITE_TMP/gone")"
}
delete_one() { ctl volume delete many "$1"; }
delete_all() {
  all delete_one v%
  expect 'volumes' 1 "$(ctl --json volume list | jq length)"
}
# An empty round first: what a process makes once and keeps is no leak.
warm() {
  make_one v0 && attach_one v0 && detach_one v0 && delete_one v0
  counts | tee "$SUITE_TMP/before"
}
check 'what there is before' warm
CHECK_TIMEOUT_S=$((60 + COUNT * 2))
ROUNDS=3
for round in $(seq $ROUNDS); do
  check "$COUNT volumes are made at once ($round)" make_all
  check "they are attached at once ($round)" attach_all
  check "they are written and read ($round)" use_all --rw=randrw --bs=4k,64k --io_size=1M
  if [ "$round" = 1 ]; then
    # The kernel queues requests again that its dead server had taken from Linux 6.9 on.
    if printf '6.9\n%s\n' "$(uname -r)" | sort -CV; then check 'kill -9 of the daemon under I/O on all' under_load daemon_dies; fi
    check 'kill -9 of the target under I/O on all, and a restart' under_load target_dies
  fi
  check "devices that rest give their memory back ($round)" rests
  check "they are detached at once ($round)" detach_all
  check "they are deleted at once ($round)" delete_all
  check "descriptors and mounts are those of before ($round)" wait_until 30 same_counts "$SUITE_TMP/before"
  for name in target daemon keeper; do memory "$(who $name)" >"$SUITE_TMP/$name.$round"; done
done
# Buffers that a process once needed at the same time it keeps: how many differs from round to round.
no_more() {
  local name round before=()
  for name in target daemon keeper; do
    before=()
    for round in $(seq $ROUNDS); do before+=("$(cat "$SUITE_TMP/$name.$round")"); done
    printf '%s, KiB after each round: %s\n' $name "${before[*]}" | tee -a "$SUITE_OUT/report"
    [ "${before[-1]}" -le $((before[-2] + 8192 + 64 * COUNT)) ]
  done
}
check 'the last round took no more memory than the one before' no_more

leaves() {
  detach_one first
  wait_until 20 ended
  expect 'devices' '' "$(ls "$RUN/by-id")"
  stop target
  ! grep -E 'panicked| ERROR ' "$SUITE_OUT/target.log" "$RUN/daemon.log"
}
check 'no device and no daemon is left, and no error was logged' leaves
