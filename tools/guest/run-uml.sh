#!/bin/bash
# run-uml.sh DISK... --: starts user-mode Linux for run.sh. JOB, OUT, SETUP, MEM_MIB, TIMEOUT_S and TAP come in the environment.
# Standard output is the script's; what the kernel says goes to OUT/console.log. Exit: 124 when the time was up.
set -euo pipefail

mem_mib=${MEM_MIB:-1024}
# shellcheck disable=SC2054
arguments=(
  "mem=${mem_mib}M" rootfstype=hostfs rootflags=/ ro "init=$JOB/init-uml.sh" "guest_job=$JOB"
  "uml_dir=$JOB/uml" con=null con0=null,fd:1 con1=null,fd:3
  # A panic ends the guest at once; a task that is stuck is named after 20 s.
  panic=-1 sysctl.kernel.hung_task_timeout_secs=20
  # Built in, but no devices until a test asks for them.
  scsi_debug.add_host=0 null_blk.nr_devices=0
)
n=0
for disk in "$@"; do
  [ "$disk" = -- ] && break
  arguments+=("ubd$n=$disk")
  n=$((n + 1))
done
[ -z "$TAP" ] || arguments+=("vec0:transport=tap,ifname=$TAP,depth=128")

# The guest's memory is a file, mapped: in /dev/shm where that is large enough (it is 64 MB in many containers).
shm_kib=$(df --output=avail /dev/shm 2>/dev/null | tail -n 1)
TMPDIR=/tmp
[ "${shm_kib:-0}" -lt $((mem_mib * 1024)) ] || TMPDIR=/dev/shm
export TMPDIR

mkdir "$JOB/uml"
# `cat` keeps the kernel from setting our caller's terminal or pipe to non-blocking; the exit code is the kernel's (pipefail).
{ LD_PRELOAD=$SETUP/xstate.so timeout --foreground -k 5 "$TIMEOUT_S" "$SETUP/linux" "${arguments[@]}" 3>&1 >"$OUT/console.log" 2>&1; } | cat
