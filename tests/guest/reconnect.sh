#!/bin/bash
# reconnect.sh: hosts that lose one of two ways to nvmf-target: the dead association is fenced, the live one stays, no data is lost.
# guest: --uml --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite reconnect

NQN=nqn.2024-01.org.example:two-ways
# The target is reached over two cables. It sits in a network namespace of its own, so that a cable can be cut without a word.
cables() {
  ip netns add storage
  local n
  for n in 1 2; do
    ip link add "cable$n" type veth peer name "port$n" netns storage
    ip addr add "10.$n.0.1/24" dev "cable$n"
    ip link set "cable$n" up
    ip -n storage addr add "10.$n.0.2/24" dev "port$n"
    ip -n storage link set "port$n" up
  done
}
serve() {
  start target ip netns exec storage nvmf-target --file "$SUITE_TMP/disk:64M" --memory 16M --nqn $NQN \
    --listen tcp://10.1.0.2:4420 --listen tcp://10.2.0.2:4420 --allow-any-host --log debug --ready-file "$SUITE_TMP/ready"
}
check 'two cables to the target' cables
serve
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

HOST=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0003
# connect N KATO: over cable N, without nvme-cli, which would first ask all controllers, dead ones too.
connect() {
  printf 'transport=tcp,traddr=10.%s.0.2,trsvcid=4420,nqn=%s,hostnqn=%s,hostid=%s,nr_io_queues=1,keep_alive_tmo=%s' \
    "$1" "$NQN" "$HOST" "${HOST##*:}" "$2" >/dev/nvme-fabrics
}
live() { [ "$(cat /sys/class/nvme/nvme*/state | grep -c live)" = "$1" ]; }
verify() { fio_verify "$(ns_dev $NQN 1)" --size=8M; }
# count TEXT N: the target's log has that many lines with TEXT.
count() { [ "$(grep -c -- "$1" "$SUITE_OUT/target.log")" = "$2" ] || { grep -- "$1" "$SUITE_OUT/target.log"; return 1; }; }
# A controller is numbered as it connects, from 1; before LINE of one, LINE of another.
before() {
  local first second
  first=$(grep -n -m1 -- "$1" "$SUITE_OUT/target.log" | cut -d: -f1)
  second=$(grep -n -m1 -- "$2" "$SUITE_OUT/target.log" | cut -d: -f1)
  [ -n "$first" ] && [ -n "$second" ] && [ "$first" -lt "$second" ]
}

both() {
  connect 1 60
  connect 2 60
  wait_until 20 live 2
  wait_until 20 ns_dev $NQN 1
  verify
  count 'association ends' 0
}
check 'two live associations of one host stay' both

gone() {
  nvme disconnect -n $NQN
  wait_until 20 count 'association ends' 2
}
check 'disconnect' gone

# Nobody tells the target that the cable is cut: no end of stream, no reset, and the keep-alive timeout is far away.
silence() {
  connect 1 120
  wait_until 20 ns_dev $NQN 2
  verify
  ip -n storage link set port1 down
  connect 2 120
  wait_until 20 live 2
  before 'association ends: the host reconnected and does not answer.*controller=3' 'I/O queue connected.*controller=4'
}
check 'an association that fell silent ends before its successor may do I/O' silence

# What the host still has for the dead way it repeats on the live one, once it gives the dead one up.
over() {
  verify
  ip -n storage link set port1 up
  wait_until 60 live 2
  verify
}
CHECK_TIMEOUT_S=120 check 'data is whole over the other way, and over both again' over

again() {
  nvme disconnect -n $NQN
  connect 1 120
  wait_until 20 ns_dev $NQN 1
  # A reset gives the old association up in form; the new one follows at once.
  local n
  for n in $(seq $((5 * NVMF_SOAK))); do
    nvme reset "$(ctrl_dev $NQN)"
  done
  verify
}
check 'resets in a row' again

check 'disconnect again' nvme disconnect -n $NQN
drained() {
  stop target
  ! grep -i panic "$SUITE_OUT/target.log"
}
check 'SIGTERM ends the target' drained
