#!/bin/bash
# fuse-kill.sh: a namespace of the Linux kernel's target as a FUSE file with a loop device, and its daemon killed under fio verify.
# In QEMU: user-mode Linux fails requests that are being read by a process that dies (docs/OPERATIONS.md), a kernel on a processor does not.
# guest: --qemu --cpus 2 --mem 1536 --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite fuse-kill

NQN=nqn.2024-01.org.example:kernel
AT=(-t tcp -a 127.0.0.1 -s 4420)
RUN=(--run-dir "$SUITE_TMP/run")
KILLS=$((3 * NVMF_SOAK))

target() {
  modprobe fuse
  modprobe loop
  nvmet_subsystem $NQN
  nvmet_namespace $NQN 1 "$(scratch_disk 64M)"
  nvmet_port 1 tcp 127.0.0.1 4420
  nvmet_link 1 $NQN
  wait_until 60 nvmf-initiator "${RUN[@]}" discover "${AT[@]}"
}
check 'a kernel target, found by our discover' target
device() { cat "$SUITE_TMP/device"; }
attach() {
  nvmf-initiator "${RUN[@]}" connect "${AT[@]}" -n $NQN --block fuse -c 1 | tee /dev/stderr | grep -o '/dev/loop[0-9]*' | head -n 1 >"$SUITE_TMP/device"
  wait_until 60 test -b "$(device)"
}
check 'connect makes a device' attach
daemon() { pgrep -f -- "--run-dir $SUITE_TMP/run daemon"; }
another() { daemon | grep -qv "^$1\$"; }
writes() { awk '{ print $5 }' "/sys/block/$(basename "$(device)")/stat"; }
wrote() { [ "$(writes)" -gt "$1" ]; }
more_writes() { wait_until 120 wrote $(($(writes) + 200)); }
# What fio has in flight when a daemon dies waits for the next one. fio goes on until after the last kill, or writes would stand still.
murders() {
  local load round old
  fio_verify "$(device)" --size=48M --allow_file_create=0 --time_based "--runtime=$((20 * KILLS))" >"$SUITE_TMP/load" 2>&1 &
  load=$!
  for ((round = 1; round <= KILLS; round++)); do
    more_writes
    old=$(daemon | head -n 1)
    kill -KILL "$old"
    wait_until 60 another "$old"
    more_writes
  done
  wait $load || { cat "$SUITE_TMP/load" && return 1; }
}
CHECK_TIMEOUT_S=$((CHECK_TIMEOUT_S + 40 * KILLS))
check "kill -9 of the daemon under fio verify, $KILLS times" murders
detach() {
  nvmf-initiator "${RUN[@]}" disconnect -n $NQN
  ! nvmf-initiator "${RUN[@]}" list | grep -q "$(device)"
}
check 'disconnect' detach
