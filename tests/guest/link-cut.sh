#!/bin/bash
# link-cut.sh: two machines, hosts (Linux's and ours) on one and nvmf-target on the other; the cable between them is cut under fio verify, and mended; the
# port of either goes down, the RDMA device of either is removed, and they come back: no error reaches fio, nothing is lost, nothing stays behind. Over
# RDMA and TCP.
# guest: host
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
# shellcheck source=../../tools/guest/machines.sh
. "$(dirname "$GUEST_LIB")/machines.sh"
private_network
suite link-cut

NQN=nqn.2024-01.org.example:storage OTHER=nqn.2024-01.org.example:other STORAGE=10.98.0.1 COMPUTE=10.98.0.2
OURS=(nvmf-initiator --run-dir /run/ours)
MACHINE_VARIABLES=(NQN OTHER STORAGE COMPUTE OURS)
machine storage $STORAGE/24 --uml --timeout 500
machine compute $COMPUTE/24 --uml --timeout 500
on_failure "$SUITE_OUT"/{storage/target.log,storage/console.log,compute/console.log,compute/daemon.log}

boots() { on storage true && on compute true; }
check 'two machines boot' boots
# A bridge over each card, so that a card can go down and the port of the RDMA device loses its carrier. (Soft RoCE on an interface that is down
# itself loses its connection manager with what that sends meanwhile.)
card() {
  ip link add br0 type bridge
  ip address flush dev net0
  ip link set net0 master br0
  ip link set br0 up
  ip address add "$1/24" dev br0
}
device() { rdma link add rxe0 type rxe netdev br0; }
devices() {
  on storage card $STORAGE
  on compute card $COMPUTE
  on storage device
  on compute device
}
check 'an RDMA device in each' devices

serve() {
  truncate -s 64M /dev/shm/{store,other}
  cat >/run/target.toml <<TOML
listen = ["rdma://$STORAGE:4420", "tcp://$STORAGE:4420"]
[[subsystem]]
nqn = "$NQN"
allow-any-host = true
namespace = [{ nsid = 1, kind = "file", path = "/dev/shm/store" }]
[[subsystem]]
nqn = "$OTHER"
allow-any-host = true
namespace = [{ nsid = 1, kind = "file", path = "/dev/shm/other" }]
TOML
  start target nvmf-target --config /run/target.toml --ready-file /run/ready
  wait_until 20 test -s /run/ready
}
check 'the target is ready' on storage serve
found() { nvme discover -t "$1" -a $STORAGE -s 4420 | grep -q "subnqn: *$NQN\$"; }
check 'the other machine finds it over RDMA' on compute found rdma
check 'the other machine finds it over TCP' on compute found tcp

# Two seconds without an answer to Keep Alive, and the host gives up. The next attempt comes late enough for the cable to be whole by
# then: one that begins before waits for as long as RDMA's connection manager repeats its request, half a minute.
# attach TRANSPORT [NQN]
attach() {
  nvme connect -t "$1" -a $STORAGE -s 4420 -n "${2:-$NQN}" --keep-alive-tmo=2 --reconnect-delay=6 --ctrl-loss-tmo=600
  wait_until 20 ns_dev "${2:-$NQN}" 1
}
# Of the disk of NQN, or of another subsystem:
state() { cat "/sys/class/nvme/$(basename "$(ctrl_dev "${1:-$NQN}")")/state"; }
live() { [ "$(state "$@")" = live ]; }
not_live() { ! live "$@"; }
detached() { ! ctrl_dev "${1:-$NQN}"; }
detach() {
  nvme disconnect -n "${1:-$NQN}"
  wait_until 20 detached "${1:-$NQN}"
}
# What the disk has completed: reads and writes.
completed() { awk '{ print $1 + $5 }' "/sys/block/$(basename "$(ns_dev "${1:-$NQN}" 1)")/stat"; }
# busy BEFORE [NQN]: it has completed 200 more.
busy() { [ "$(completed "${2:-$NQN}")" -gt $(($1 + 200)) ]; }
# load [NQN]
load() { fio_verify "$(ns_dev "${1:-$NQN}" 1)" --size=16M --rate_iops=2000 --loops=2; }
associations_ended() { grep -c 'association ends' /out/target.log || true; }
ended_beyond() { [ "$(associations_ended)" -gt "$1" ]; }

# Our initiator, with a ublk device. The log of its daemon is kept with those of the suite.
log_outside() {
  mkdir -m 700 /run/ours
  ln -s /out/daemon.log /run/ours/daemon.log
}
check 'a log that can be read from outside' on compute log_outside
our_attach() {
  "${OURS[@]}" connect -t "$1" -a $STORAGE -s 4420 -n $NQN --block ublk --keep-alive-tmo 2 --reconnect-delay 1
  wait_until 20 test -b "$(our_disk)"
}
our_disk() { "${OURS[@]}" list -o json | jq -r '.controllers[].namespaces[] | select(.nsid == 1).device'; }
our_state() { "${OURS[@]}" list -o json | jq -r '.controllers[].state'; }
our_completed() { awk '{ print $1 + $5 }' "/sys/block/$(basename "$(our_disk)")/stat"; }
our_load() { fio_verify "$(our_disk)" --size=16M --rate_iops=2000 --loops=2; }
our_detach() { "${OURS[@]}" disconnect -n $NQN; }

linux_attach() { attach "$@"; }
linux_state() { state; }
linux_completed() { completed; }
linux_load() { load $NQN; }
linux_detach() { detach $NQN; }

# is WHAT STATE, is_not WHAT STATE, beyond WHAT NUMBER: for a function WHAT that prints one.
is() { [ "$("$1")" = "$2" ]; }
is_not() { ! is "$@"; }
beyond() { [ "$("$1")" -gt "$2" ]; }

# cut_and_mend linux|our TRANSPORT
cut_and_mend() {
  local who=$1 before fio ended sent arrived during
  on compute "${who}_attach" "$2"
  ended=$(on storage associations_ended)
  before=$(on compute "${who}_completed")
  on compute "${who}_load" &
  fio=$!
  on compute wait_until 30 beyond "${who}_completed" $((before + 200))
  sent=$(packets_from compute)
  cut compute
  arrived=$(packets_to storage)
  on compute wait_until 40 is_not "${who}_state" live
  # The host sent, nothing arrived; nothing completes any more, until either side has given the other up, and fio still waits.
  during=$(on compute "${who}_completed")
  [ "$(packets_from compute)" -gt "$sent" ]
  on storage wait_until 20 ended_beyond "$ended"
  expect 'packets that arrived while the cable was cut' "$arrived" "$(packets_to storage)"
  expect 'completed while the cable was cut' "$during" "$(on compute "${who}_completed")"
  on compute is_not "${who}_state" live
  kill -0 $fio
  mend compute
  on compute wait_until 90 is "${who}_state" live
  wait $fio
  echo "completed before $before, at the cut $during, after $(on compute "${who}_completed")"
  on compute "${who}_detach"
}
for transport in rdma tcp; do
  CHECK_TIMEOUT_S=120 check "Linux's host: the cable cut and mended under fio verify over $transport" cut_and_mend linux $transport
  CHECK_TIMEOUT_S=120 check "our initiator: the cable cut and mended under fio verify over $transport" cut_and_mend our $transport
done

# A discovery controller that stays (nvme-cli's --persistent): the host keeps it alive, and nothing else goes over the cable. 20 packets are ten Keep Alives,
# five times the time after which the target ends an association without them; and it does when they do not come.
DISCOVERY=nqn.2014-08.org.nvmexpress.discovery
MACHINE_VARIABLES+=(DISCOVERY)
sent_beyond() { [ "$(packets_from compute)" -gt "$1" ]; }
persists() {
  local sent ended
  on compute nvme discover -t "$1" -a $STORAGE -s 4420 --persistent --keep-alive-tmo=1 --reconnect-delay=6
  on compute wait_until 20 live $DISCOVERY
  ended=$(on storage associations_ended)
  sent=$(packets_from compute)
  wait_until 60 sent_beyond $((sent + 20))
  expect 'associations that ended' "$ended" "$(on storage associations_ended)"
  on compute live $DISCOVERY
  cut compute
  on storage wait_until 20 ended_beyond "$ended"
  mend compute
  on compute wait_until 90 not_live $DISCOVERY
  on compute wait_until 90 live $DISCOVERY
  on compute detach $DISCOVERY
}
for transport in tcp rdma; do
  CHECK_TIMEOUT_S=200 check "a persistent discovery controller lives by Keep Alive over $transport" persists $transport
done

# The device goes away from under the target, while one host uses it and another TCP; and comes back.
no_device() { ! rdma link show rxe0/1; }
says() { grep -q -- "$1" /out/target.log; }
device_removed() {
  local rdma tcp during
  on compute attach rdma
  on compute attach tcp $OTHER
  on compute load &
  rdma=$!
  on compute load $OTHER &
  tcp=$!
  on compute wait_until 30 busy 0
  on compute wait_until 30 busy 0 $OTHER
  on storage rdma link delete rxe0
  on storage wait_until 20 no_device
  on storage wait_until 20 says "rdma://$STORAGE:4420.*removed"
  on compute wait_until 40 not_live
  during=$(on compute completed $OTHER)
  on compute wait_until 20 busy "$during" $OTHER
  kill -0 $rdma
  on storage device
  on storage wait_until 20 says "listening on rdma://$STORAGE:4420 again"
  on compute wait_until 90 live
  wait $rdma
  wait $tcp
  on compute live $OTHER
  on compute detach
  on compute detach $OTHER
}
CHECK_TIMEOUT_S=120 check 'the RDMA device removed under I/O, and brought back; TCP goes on' device_removed

# A port that loses its carrier.
port_state() { rdma link show rxe0/1 | grep -q "state $1 "; }
# Opening user-mode Linux's card turns on what tools/guest/init.sh turned off, behind the back of the kernel, which then has nothing to do when that is
# asked for again; with it TCP between two guests is ten times slower.
card_up() {
  ip link set net0 up
  ethtool -K net0 tso on gso on gro on
  ethtool -K net0 tso off gso off gro off
  ethtool -k net0 | tee /dev/stderr | no_offload
}
no_offload() { ! grep -E '^(tcp-segmentation|generic-segmentation|generic-receive)-offload: on'; }
port_down() {
  local fio ended
  on compute attach rdma
  ended=$(on storage associations_ended)
  on compute load &
  fio=$!
  on compute wait_until 30 busy 0
  on storage ip link set net0 down
  on storage wait_until 10 port_state DOWN
  on compute wait_until 40 not_live
  on storage wait_until 20 ended_beyond "$ended"
  kill -0 $fio
  on storage card_up
  on storage wait_until 10 port_state ACTIVE
  on compute wait_until 90 live
  wait $fio
  on compute detach
}
CHECK_TIMEOUT_S=120 check 'the port of the target down and up under fio verify' port_down

# The same from under our initiator, whose I/O waits meanwhile. `rdma link delete` returns when nobody has the device open any more.
our_log() { cat /run/ours/daemon.log; }
our_log_lines() { our_log | wc -l; }
# our_says AFTER-LINE REGEX
our_says() { our_log | tail -n "+$(($1 + 1))" | grep -- "$2"; }
# our_fault FAULT PROOF SAID BACK: under fio verify: the fault, which PROOF shows; what the log says then; and BACK, which takes the fault away.
our_fault() {
  local fault=$1 proof=$2 said=$3 back=$4 fio before during line
  on compute our_attach rdma
  line=$(on compute our_log_lines)
  before=$(on compute our_completed)
  on compute our_load &
  fio=$!
  on compute wait_until 30 beyond our_completed $((before + 200))
  on compute "$fault"
  on compute wait_until 20 "$proof"
  on compute wait_until 40 is_not our_state live
  during=$(on compute our_completed)
  on compute wait_until 40 our_says "$line" "$said"
  expect 'completed meanwhile' "$during" "$(on compute our_completed)"
  kill -0 $fio
  on compute "$back"
  on compute wait_until 90 is our_state live
  wait $fio
  on compute our_says "$line" 'connection lost'
  on compute our_detach
}
delete_device() { rdma link delete rxe0; }
our_device_removed() { our_fault delete_device no_device 'no reconnect yet.*rdma link show' device; }
CHECK_TIMEOUT_S=120 check 'our initiator: its RDMA device removed under fio verify, and brought back' our_device_removed
says_removed() { on compute our_says 0 'connection lost.*the RDMA device rxe0 is being removed'; }
check 'and says why the association ended' says_removed
card_down() { ip link set net0 down; }
port_is_down() { port_state DOWN; }
our_port_down() { our_fault card_down port_is_down 'no reconnect yet' card_up; }
CHECK_TIMEOUT_S=120 check 'our initiator: its port down and up under fio verify' our_port_down

# Nothing goes over the device any more, and still the library has it open: that must not hold up its removal either.
contexts() { rdma resource show | sed -n 's/.* ctx \([0-9]*\).*/\1/p'; }
over_other() { "${OURS[@]}" "$1" -n $OTHER "${@:2}"; }
idle_device_removed() {
  on compute our_attach tcp
  on compute over_other connect -t rdma -a $STORAGE -s 4420 --block none
  on compute over_other disconnect
  expect 'contexts' 1 "$(on compute contexts)"
  on compute delete_device
  on compute no_device
  expect 'state' live "$(on compute our_state)"
  on compute device
  on compute over_other connect -t rdma -a $STORAGE -s 4420 --block none
  on compute over_other disconnect
  on compute our_load
  expect 'state' live "$(on compute our_state)"
  on compute our_detach
}
CHECK_TIMEOUT_S=120 check 'our initiator: an RDMA device removed that no association uses' idle_device_removed

left() { rdma resource show | tee /dev/stderr | grep -q ' qp 1 '; } # the device's own
check 'no queue pair is left behind by the target' on storage wait_until 20 left
check 'nothing is left behind by our initiator' on compute wait_until 20 left

check 'no kernel reported a bug' machines_are_well
