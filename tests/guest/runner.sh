#!/bin/bash
# runner.sh: shows what `guest run` promises to its caller: exit codes, output, arguments, time limits, disks, and that nothing
# is left behind. On this machine; each check boots a guest of its own.
# guest: host
# shellcheck disable=SC2016 # what is in single quotes is expanded in the guest
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite runner
export SUITE_TMP

mkdir "$SUITE_TMP/jobs"
guest() { TMPDIR=$SUITE_TMP/jobs tools/guest/guest run --uml "$@"; }
# script TEXT...: prints the name of a script with these lines.
script() {
  local file
  file=$(mktemp "$SUITE_TMP/script.XXXXXX")
  printf '%s\n' "$@" >"$file"
  printf '%s\n' "$file"
}
# code WANT RUN-ARGS...: the exit code of that run.
code() {
  local want=$1 got=0
  shift
  guest "$@" || got=$?
  expect 'exit code' "$want" "$got"
}

check 'an exit code of 0' code 0 "$(script true)"
check 'an exit code of 7' code 7 "$(script 'exit 7')"
check 'a script that a signal ends' code 143 "$(script 'kill -TERM $$')"
check 'a kernel that dies is 125' code 125 "$(script 'echo c >/proc/sysrq-trigger')"
overdue() {
  local begin=$SECONDS
  code 124 --timeout 3 "$(script 'sleep 1000')"
  [ $((SECONDS - begin)) -lt 20 ]
}
check 'a guest that is overdue is ended with 124' overdue

whole() {
  guest "$(script 'seq 100000')" >"$SUITE_TMP/got"
  cmp "$SUITE_TMP/got" <(seq 100000)
}
check 'output comes back whole and unchanged' whole
arguments() {
  local got
  got=$(guest --env 'WORD=two  words' "$(script 'printf "<%s>" "$@" "$WORD" "$NVMF_TEST"')" 'a  b' '' "it's \$x")
  expect arguments "<a  b><><it's \$x><two  words><passed on>" "$got"
}
export NVMF_TEST='passed on'
check 'arguments and variables arrive as they are' arguments
out() {
  mkdir "$SUITE_TMP/out"
  echo before >"$SUITE_TMP/out/file"
  guest --out "$SUITE_TMP/out" "$(script 'cat /out/file' 'echo after >/out/file')"
  expect '/out/file' after "$(cat "$SUITE_TMP/out/file")"
  [ -s "$SUITE_TMP/out/console.log" ]
}
check '/out is shared both ways' out
untouched() {
  echo original >"$SUITE_TMP/precious"
  guest "$(script "echo changed >$SUITE_TMP/precious" "grep -q changed $SUITE_TMP/precious")"
  expect 'the file on the host' original "$(cat "$SUITE_TMP/precious")"
}
check 'the files of the host stay as they are' untouched
disk() {
  truncate -s 8M "$SUITE_TMP/disk"
  guest --disk 4M --disk "$SUITE_TMP/disk" "$(script 'set -- $GUEST_DISKS; blockdev --getsize64 "$1" "$2"; echo kept | dd of="$2" conv=fsync')"
  expect 'the first bytes of the disk' kept "$(head -c 4 "$SUITE_TMP/disk")"
}
check 'a disk is kept in its file' disk

refuse 'a script that is not there' 'cannot read the script' guest "$SUITE_TMP/nothing"
refuse 'an unknown option' 'no option --frobnicate' guest --frobnicate "$(script true)"
refuse 'emulated NVMe without QEMU' 'needs --qemu' guest --nvme 64M "$(script true)"
refuse 'a guest that is not set up' 'guest setup uml' env NVMF_GUEST_CACHE="$SUITE_TMP" tools/guest/guest run --uml "$(script true)"

# Two guests joined by a bridge, as two machines are, in a network of their own.
cat >"$SUITE_TMP/storage.sh" <<'END'
. "$GUEST_LIB"
nvmet_subsystem nqn.2024-01.org.example:far
nvmet_namespace nqn.2024-01.org.example:far 1 "$(scratch_disk 16M)"
nvmet_port 1 tcp 10.98.0.1 4420
nvmet_link 1 nqn.2024-01.org.example:far
connected() { ss -Htn state established | grep -q ':4420 '; }
alone() { ! connected; }
wait_until 40 connected && wait_until 40 alone
END
cat >"$SUITE_TMP/compute.sh" <<'END'
. "$GUEST_LIB"
wait_until 40 nvme connect -t tcp -a 10.98.0.1 -s 4420 -n nqn.2024-01.org.example:far &&
  wait_until 20 ns_dev nqn.2024-01.org.example:far 1 &&
  fio_verify "$(ns_dev nqn.2024-01.org.example:far 1)" --size=4M &&
  nvme disconnect -n nqn.2024-01.org.example:far
END
two_machines() {
  local storage
  ip link add switch type bridge
  ip link set switch up
  for tap in near far; do
    ip tuntap add $tap mode tap
    ip link set $tap master switch up
  done
  guest --net near=10.98.0.1/24 "$SUITE_TMP/storage.sh" &
  storage=$!
  guest --net far=10.98.0.2/24 "$SUITE_TMP/compute.sh"
  wait "$storage"
}
# unshared FUNCTION: runs it in a network namespace of its own.
unshared() { unshare --net bash -euo pipefail -c "$(declare -f guest expect "$1"); $1"; }
check 'two guests meet over a bridge' unshared two_machines

nothing_left() {
  expect 'folders of guests' '' "$(ls "$SUITE_TMP/jobs")"
  expect 'processes of guests' '' "$(pgrep -fa "$SUITE_TMP/jobs" || true)"
}
check 'no guest leaves a folder or a process behind' nothing_left
