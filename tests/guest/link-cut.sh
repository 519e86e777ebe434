#!/bin/bash
# link-cut.sh: two machines, Linux's host on one and nvmf-target on the other; the cable between them is cut under fio verify, and mended:
# no error reaches fio, nothing is lost, and nothing stays behind. Over RDMA and over TCP.
# guest: host
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
# shellcheck source=../../tools/guest/machines.sh
. "$(dirname "$GUEST_LIB")/machines.sh"
private_network
suite link-cut

NQN=nqn.2024-01.org.example:storage STORAGE=10.98.0.1 COMPUTE=10.98.0.2
MACHINE_VARIABLES=(NQN STORAGE)
machine storage $STORAGE/24 --uml --timeout 280
machine compute $COMPUTE/24 --uml --timeout 280
on_failure "$SUITE_OUT"/{storage/target.log,storage/console.log,compute/console.log}

boots() { on storage true && on compute true; }
check 'two machines boot' boots
device() { rdma link add rxe0 type rxe netdev net0; }
devices() { on storage device && on compute device; }
check 'an RDMA device in each' devices

serve() {
  truncate -s 64M /dev/shm/store
  start target nvmf-target --file /dev/shm/store --nqn $NQN --allow-any-host --listen rdma://$STORAGE --listen tcp://$STORAGE \
    --ready-file /run/ready
  wait_until 20 test -s /run/ready
}
check 'the target is ready' on storage serve
found() { nvme discover -t "$1" -a $STORAGE -s 4420 | grep -q "subnqn: *$NQN\$"; }
check 'the other machine finds it over RDMA' on compute found rdma
check 'the other machine finds it over TCP' on compute found tcp

# Two seconds without an answer to Keep Alive, and the host gives up. The next attempt comes late enough for the cable to be whole by
# then: one that begins before waits for as long as RDMA's connection manager repeats its request, half a minute.
attach() {
  nvme connect -t "$1" -a $STORAGE -s 4420 -n $NQN --keep-alive-tmo=2 --reconnect-delay=6 --ctrl-loss-tmo=600
  wait_until 20 ns_dev $NQN 1
}
state() { cat "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/state"; }
live() { [ "$(state)" = live ]; }
not_live() { ! live; }
detached() { ! ctrl_dev $NQN; }
detach() {
  nvme disconnect -n $NQN
  wait_until 20 detached
}
# What the disk has completed: reads and writes.
completed() { awk '{ print $1 + $5 }' "/sys/block/$(basename "$(ns_dev $NQN 1)")/stat"; }
busy() { [ "$(completed)" -gt $(($1 + 200)) ]; }
load() { fio_verify "$(ns_dev $NQN 1)" --size=16M --rate_iops=2000 --loops=2; }
associations_ended() { grep -c 'association ends' /out/target.log || true; }
ended_beyond() { [ "$(associations_ended)" -gt "$1" ]; }

# cut_and_mend TRANSPORT
cut_and_mend() {
  local before fio ended sent arrived during
  on compute attach "$1"
  ended=$(on storage associations_ended)
  before=$(on compute completed)
  on compute load &
  fio=$!
  on compute wait_until 30 busy "$before"
  sent=$(packets_from compute)
  cut compute
  arrived=$(packets_to storage)
  on compute wait_until 40 not_live
  # The host sent, nothing arrived; nothing completes any more, until either side has given the other up, and fio still waits.
  during=$(on compute completed)
  [ "$(packets_from compute)" -gt "$sent" ]
  on storage wait_until 20 ended_beyond "$ended"
  expect 'packets that arrived while the cable was cut' "$arrived" "$(packets_to storage)"
  expect 'completed while the cable was cut' "$during" "$(on compute completed)"
  expect state connecting "$(on compute state)"
  kill -0 $fio
  mend compute
  on compute wait_until 90 live
  wait $fio
  echo "completed before $before, at the cut $during, after $(on compute completed)"
  on compute detach
}
CHECK_TIMEOUT_S=120 check 'the cable cut and mended under fio verify over RDMA' cut_and_mend rdma
CHECK_TIMEOUT_S=120 check 'the cable cut and mended under fio verify over TCP' cut_and_mend tcp

check 'no kernel reported a bug' machines_are_well
