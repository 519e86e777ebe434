#!/bin/bash
# api.sh: the Linux kernel's host while nvmfctl changes what it is connected to: namespaces, sizes, hosts, listeners, and a killed target.
# guest: --uml --timeout 300
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite api

NQN=nqn.2024-01.org.example:live
HOST=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0005
export NVMF_RPC=$SUITE_TMP/rpc.sock
serve() {
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --rpc "$NVMF_RPC" --state-dir "$SUITE_TMP/state" --ready-file "$SUITE_TMP/ready"
}
ready() { wait_until 20 test -s "$SUITE_TMP/ready"; }
serve
check 'a target that serves nothing yet' ready

made() {
  truncate -s 32M "$SUITE_TMP/disk"
  nvmfctl subsystem create $NQN
  nvmfctl bdev create file disk "$SUITE_TMP/disk" --block-size 4096
  nvmfctl namespace add $NQN disk
  nvmfctl host add $NQN $HOST
}
check 'a subsystem is made' made
connect() { nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -q $HOST -I "${HOST##*:}" -i 2 --reconnect-delay=1 --ctrl-loss-tmo=60; }
# nvme-cli says in more than one way that a host was turned away.
refuse 'it is not served before it has a listener' 'onnect|nvme' connect
listen() { nvmfctl listener add $NQN 127.0.0.1:4420 && connect && wait_until 10 ns_dev $NQN 1; }
check 'Linux connects once it has one' listen
disk() { ns_dev $NQN 1; }
same_uuid() {
  local listed
  listed=$(nvmfctl --json namespace list $NQN | jq -r '.[0].namespaces[0].uuid')
  [ "$(cat "/sys/block/$(basename "$(disk)")/uuid")" = "$listed" ]
}
check 'it has the identifiers that the API tells' same_uuid
check 'data is written and read back' fio_verify "$(disk)" --size=8M

grown() { [ "$(blockdev --getsize64 "$(disk)")" = $((48 << 20)) ]; }
grow() { truncate -s 48M "$SUITE_TMP/disk" && nvmfctl bdev rescan disk && wait_until 10 grown; }
check 'a file that grew is seen by the connected host' grow
add() { nvmfctl bdev create memory ram 16M && nvmfctl namespace add $NQN ram --nsid 9 && wait_until 10 ns_dev $NQN 9; }
check 'a namespace is added under the connected host' add
added_works() { fio_verify "$(ns_dev $NQN 9)" --size=4M; }
check 'and works' added_works
gone() { ! ns_dev $NQN 9; }
remove() { nvmfctl namespace remove $NQN 9 && wait_until 10 gone; }
check 'a namespace is removed under the connected host' remove
add_again() { nvmfctl namespace add $NQN ram --nsid 9 && wait_until 10 ns_dev $NQN 9; }
check 'and comes back' add_again
with_bdev() { nvmfctl bdev delete ram && wait_until 10 gone; }
check 'a bdev takes its namespace with it' with_bdev

# The host writes while the target is killed; what the API made comes back, and with it the host.
start writer fio --name=through --filename="$(disk)" --rw=randwrite --bs=4k --size=8M --time_based --runtime=8 --direct=1 --output="$SUITE_OUT/through.log"
NAME=$(basename "$(disk)")
written() { [ "$(awk '{ print $5 }' "/sys/block/$NAME/stat")" -gt "$1" ]; }
killed() { wait_until 20 written 2500 && stop target KILL; }
check 'the target is killed under a host that writes' killed
serve
check 'it comes back' ready
went_on() {
  wait_until 60 grep -q 'err=' "$SUITE_OUT/through.log"
  grep -q 'err= 0' "$SUITE_OUT/through.log"
}
CHECK_TIMEOUT_S=90 check 'with all that was made, so that the host only waited' went_on
back() { grown && nvmfctl --json controllers | jq -e "map(select(.hostnqn == \"$HOST\")) | length == 1"; }
check 'the host is the same, and its disk has its size' wait_until 20 back

revoked() {
  nvmfctl host remove $NQN $HOST
  nvmfctl --json controllers | jq -e 'length == 0'
}
check 'a host that lost its permission is gone when the command returns' revoked
refuse 'and does not get in again' 'onnect|nvme' connect
