#!/bin/bash
# rdma-linux-host.sh: the Linux kernel's NVMe/RDMA host against nvmf-target over soft RoCE: discovery, identification, data, faults,
# TCP beside it, and private data that is wrong.
# guest: --uml --mem 1536 --timeout 1200
# guest: --qemu --cpus 2 --mem 2048 --timeout 1500
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite rdma-linux-host

NQN=nqn.2024-01.org.example:storage
HERE=10.96.0.1
AT=(-t rdma -a "$HERE" -s 4420)
CONFIG=$SUITE_TMP/target.toml

# Runs a program as on a machine without rdma-core.
# shellcheck disable=SC2016
WITHOUT_LIBRARY=(unshare -m bash -c 'for lib in /usr/lib/*/librdmacm.so.1; do mount --bind /dev/null "$(readlink -f "$lib")"; done && exec "$@"' -)
refuse 'without rdma-core, rdma:// says what to install' 'rdma://.*librdmacm.*apt install librdmacm1 ibverbs-providers' \
  "${WITHOUT_LIBRARY[@]}" nvmf-target --null 1G --allow-any-host --listen "rdma://$HERE"
tcp_only() {
  start plain "${WITHOUT_LIBRARY[@]}" nvmf-target --null 1G --listen tcp://127.0.0.1:4421
  wait_until 20 nvme discover -t tcp -a 127.0.0.1 -s 4421
  stop plain
}
check 'without rdma-core, the same program serves TCP' tcp_only
refuse 'an address without an RDMA device is refused' 'rdma link show' nvmf-target --null 1G --allow-any-host --listen "rdma://$HERE"

SIZE=32M LOAD=16M QUEUES=1 ROUNDS=20 DEATHS=50 COUNT=2000
[ "$GUEST_KIND" = uml ] || SIZE=2M LOAD=8M QUEUES=2 ROUNDS=3 DEATHS=1 COUNT=400 # emulation is slow, but has two processors

device() {
  [ -e /sys/class/net/dummy0 ] || ip link add dummy0 type dummy
  ip link set dummy0 up
  ip address add $HERE/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
}
prepare 'an RDMA device in software' device
configure() {
  truncate -s 256M /dev/shm/store
  cat >"$CONFIG" <<TOML
listen = ["rdma://$HERE:4420", "tcp://127.0.0.1:4420"]
[limits]
handshake-ms = 2000
[[subsystem]]
nqn = "$NQN"
allow-any-host = true
[[subsystem.namespace]]
nsid = 1
kind = "file"
path = "/dev/shm/store"
[[subsystem.namespace]]
nsid = 2
kind = "memory"
size = "64M"
[[subsystem.namespace]]
nsid = 3
kind = "null"
size = "1G"
[[subsystem.namespace]]
nsid = 4
kind = "block"
path = "$(scratch_disk 64M)"
TOML
  nvmf-target --config "$CONFIG" --check
}
prepare 'a configuration that passes --check' configure
start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
ready() {
  wait_until 20 test -s "$SUITE_TMP/ready"
  grep -qx "rdma://$HERE:4420" "$SUITE_TMP/ready"
}
prepare 'the target is ready on both transports' ready

lists() {
  local log
  log=$(nvme discover "${AT[@]}")
  echo "$log"
  grep -q "subnqn: *$NQN\$" <<<"$log"
  grep -q 'trtype: *rdma' <<<"$log"
  grep -q 'trtype: *tcp' <<<"$log" && return 1 # it listens on loopback, which this host cannot reach over RDMA
  grep -q 'rdma_cms: *rdma-cm' <<<"$log"
}
check 'discover over RDMA' lists
check 'private data wrong in each field is rejected with its code' rdma-peer refused $HERE:4420
check 'a connection without Connect is ended' rdma-peer silent $HERE:4420
given_up() { [ "$(grep -c 'closed: no Connect within' "$SUITE_OUT/target.log")" = 2 ]; }
half() {
  start half rdma-peer half $HERE:4420
  wait_until 20 given_up
  stop half KILL
}
check 'a connection that is never established is ended' half
# What the device has for processes: queue pairs, registrations, domains. Some registrations stay, for the next connection.
resources() { rdma resource show | sed 's/srq.*//'; }
no_queue() { resources | tee /dev/stderr | grep -q ' qp 1 '; } # the device's own
mute() {
  rdma-peer mute $HERE:4420 $NQN 2
  wait_until 20 no_queue
}
check 'a host that stops in the middle is ended, and its queue pairs are gone' mute
check 'capsules wrong in each field are refused with the status for it' rdma-peer capsules $HERE:4420 $NQN 2

attach() {
  nvme connect "${AT[@]}" -n $NQN "$@"
  local nsid
  for nsid in 1 2 3 4; do wait_until 20 ns_dev $NQN $nsid; done
}
detached() { ! ctrl_dev $NQN; }
detach() {
  nvme disconnect -n $NQN
  wait_until 20 detached
}
queues() {
  attach -i 4
  # queue_count counts the admin queue too; the kernel asks for no more queues than processors.
  expect 'queues' $((QUEUES + 1)) "$(cat "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/queue_count")"
}
check 'connect' queues
identify() {
  local ctrl
  ctrl=$(ctrl_dev $NQN)
  expect transport rdma "$(cat "/sys/class/nvme/$(basename "$ctrl")/transport")"
  nvme id-ctrl "$ctrl" | tee /dev/stderr | grep -qE '^sgls *: 0x100005'
  nvme id-ctrl "$ctrl" | grep -qE '^ioccsz *: 260' # 64 + 4096 bytes
  nvme smart-log "$ctrl"
}
check 'id-ctrl says what RDMA takes' identify
# verify NSID BLOCK-SIZE SIZE
verify() {
  local disk
  disk=$(ns_dev $NQN "$1")
  fio_verify "$disk" --bs="$2" --size="$3"
}
for size in 4k 64k 1m; do
  check "fio verifies a file at $size" verify 1 $size $SIZE
  check "fio verifies memory at $size" verify 2 $size $SIZE
done
zeroes() {
  local disk
  disk=$(ns_dev $NQN 3)
  cmp -n $((4 << 20)) "$disk" /dev/zero
  dd if=/dev/urandom of="$disk" bs=1M count=4 oflag=direct
}
check 'a null namespace reads as zeroes and takes writes' zeroes
files() {
  local disk
  disk=$(ns_dev $NQN 1)
  wipefs -aq "$disk"
  mkfs.ext4 -q "$disk"
  mkdir -p /mnt/rdma
  mount "$disk" /mnt/rdma
  fio_verify /mnt/rdma/file --size=$SIZE --bs=64k
  umount /mnt/rdma
}
check 'mkfs.ext4, mount, fio verify' files

# under_fio NSID CMD: runs CMD again and again while fio verifies; fio must not see it.
under_fio() {
  local disk fio
  disk=$(ns_dev $NQN "$1")
  fio_verify "$disk" --size=$LOAD --bs=4k --loops=2 --rate_iops=3000 &
  fio=$!
  shift
  wait_until 20 busy "$disk"
  "$@"
  wait $fio
}
busy() { [ "$(awk '{ print $5 }' "/sys/block/$(basename "$1")/stat")" -gt 100 ]; }
resets() {
  local n
  for n in 1 2 3; do
    nvme reset "$(ctrl_dev $NQN)"
    wait_until 30 live
  done
}
live() { [ "$(cat "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/state")" = live ]; }
# The API makes listeners of both transports; an address is one of a transport.
LIVE=nqn.2024-01.org.example:live
# reach TRANSPORT PORT: connects and disconnects.
reach() {
  nvme connect -t "$1" -a $HERE -s "$2" -n $LIVE
  wait_until 20 ns_dev $LIVE 1
  nvme disconnect -n $LIVE
}
over_tcp() {
  nvmfctl subsystem create $LIVE
  nvmfctl bdev create null nothing 64M
  nvmfctl namespace add $LIVE nothing
  nvmfctl host any $LIVE on
  nvmfctl listener add $LIVE $HERE:4420
  reach tcp 4420
}
check 'a subsystem of the API at a TCP address' over_tcp
refuse 'is not reached at the same address over RDMA' 'onnect|nvme' reach rdma 4420
over_rdma() {
  nvmfctl listener add $LIVE rdma://$HERE:4420
  reach rdma 4420
  nvmfctl listener add $LIVE rdma://$HERE:4421
  reach rdma 4421
  nvmfctl listener remove $LIVE rdma://$HERE:4420
}
check 'until it gets an RDMA listener there, or elsewhere' over_rdma
refuse 'and not once that is removed' 'onnect|nvme' reach rdma 4420
limits() {
  nvmfctl rpc nvmf_create_transport '{"trtype": "RDMA", "max_queue_depth": 64}'
  nvmfctl rpc nvmf_get_transports '{"trtype": "RDMA"}' | tee /dev/stderr | jq -e '.[0] | .max_queue_depth == 64 and .in_capsule_data_size == 4096'
}
check 'what hosts may use over RDMA is set by the API' limits

check 'reset under fio verify' under_fio 2 resets
# A namespace in memory has a new identity after a restart, so what survives one is the file.
kills() {
  stop target KILL
  wait_until 30 not_live
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready2"
  wait_until 30 test -s "$SUITE_TMP/ready2"
  wait_until 60 live
}
not_live() { ! live; }
check 'kill -9 and restart under fio verify' under_fio 1 kills
kept() {
  reach rdma 4421
  nvmfctl rpc nvmf_get_transports '{"trtype": "RDMA"}' | jq -e '.[0].max_queue_depth == 64'
  nvmfctl subsystem delete $LIVE
}
check 'what the API made over RDMA is there after the kill' kept
refuse 'a listener goes with its subsystem' 'onnect|nvme' reach rdma 4421
check 'disconnect' detach

# A listener of the API whose device is not there when the target starts. (One of the configuration is an error then.)
LATE=10.97.0.1
late_device() { rdma link add rxe1 type rxe netdev dummy1; }
listens() { nvmfctl rpc nvmf_subsystem_get_listeners "{\"nqn\": \"$LIVE\"}" | tee /dev/stderr | jq -e ".[0].listening == $1"; }
reach_late() {
  nvme connect -t rdma -a $LATE -s 4420 -n $LIVE
  wait_until 20 ns_dev $LIVE 1
  nvme disconnect -n $LIVE
}
late() {
  ip link add dummy1 type dummy
  ip link set dummy1 up
  ip address add $LATE/24 dev dummy1
  late_device
  nvmfctl subsystem create $LIVE
  nvmfctl namespace add $LIVE nothing
  nvmfctl host any $LIVE on
  nvmfctl listener add $LIVE rdma://$LATE:4420
  reach_late
  stop target
  rdma link delete rxe1
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready3"
  wait_until 30 test -s "$SUITE_TMP/ready3"
  listens false
  nvmfctl listener list $LIVE | tee /dev/stderr | grep "$LATE:4420.*no: .*rdma link show"
  grep "cannot listen on rdma://$LATE:4420.*tried again each second" "$SUITE_OUT/target.log"
  late_device
  wait_until 20 listens true
  reach_late
}
check 'a listener of the API whose device comes after the target' late
late_gone() {
  rdma link delete rxe1
  wait_until 20 listens false
  nvmfctl subsystem delete $LIVE
  ip link delete dummy1
}
check 'and goes again' late_gone

# work: the work requests and completions of I/O queues so far, and the bytes copied, as counters of the target: lines of NAME=NUMBER.
work() {
  nvmfctl rpc nvmf_get_stats | jq -r '[.poll_groups[] | select(.name != "control")]
    | { copied_bytes: map(.copied_bytes) | add }
      + ([.[].transports[] | select(.trtype == "RDMA").devices[]]
        | map(to_entries[] | select(.value | type == "number")) | group_by(.key) | map({ (.[0].key): map(.value) | add }) | add)
    | to_entries[] | "\(.key)=\(.value)"'
}
# per_io NSID COMMANDS FIO-ARGS: runs fio for so many commands, and prints what each took.
per_io() {
  local nsid=$1 commands=$2 before
  before=$(work)
  shift 2
  fio --name=count --filename="$(ns_dev $NQN "$nsid")" --direct=1 --ioengine=io_uring --iodepth=16 --number_ios="$commands" --size=60M --io_size=1G "$@" >/dev/null
  paste -d= <(echo "$before") <(work) | awk -F= -v n="$commands" '{ printf "%s %.2f\n", $1, ($4 - $2) / n }'
}
# takes SENDS READS WRITES NSID COMMANDS FIO-ARGS: so many work requests a command, no registration, no copy, and at most a completion for each.
takes() {
  local cost
  cost=$(per_io "${@:4}")
  echo "$cost"
  grep -qx "send_wrs $1" <<<"$cost"
  grep -qx "read_wrs $2" <<<"$cost"
  grep -qx "write_wrs $3" <<<"$cost"
  grep -qx 'total_recv_wrs 1.00' <<<"$cost"
  grep -qx 'registrations 0.00' <<<"$cost"
  grep -qx 'copied_bytes 0.00' <<<"$cost"
  awk -v reads="$2" '$1 == "signalled_wrs" { s = $2 } $1 == "send_doorbell_updates" { d = $2 } END { exit !(s <= d + reads && d <= 2) }' <<<"$cost"
}
counted() {
  attach -i 1
  per_io 1 $COUNT --rw=randread --bs=64k >/dev/null # from here on everything is registered
}
check 'connect, to count what commands take' counted
# What a memory namespace copies is its own, as what a disk does is.
for kind in 1:file 2:memory 4:block; do
  check "${kind#*:}: a read takes a WRITE and a SEND, and no copy" takes 1.00 0.00 1.00 "${kind%:*}" $COUNT --rw=randread --bs=4k
  check "${kind#*:}: a write of 4 KiB takes a SEND, and no copy" takes 1.00 0.00 0.00 "${kind%:*}" $COUNT --rw=randwrite --bs=4k
  check "${kind#*:}: a write of 64 KiB takes a READ and a SEND, and no copy" takes 1.00 1.00 0.00 "${kind%:*}" $COUNT --rw=randwrite --bs=64k
done
check 'disconnect after counting' detach
# The count is not 0 where there are copies: over TCP data in capsules are copied once.
copied_over_tcp() {
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN
  wait_until 20 ns_dev $NQN 1
  per_io 1 $COUNT --rw=randwrite --bs=4k | tee /dev/stderr | grep -qx 'copied_bytes 4096.00'
  detach
}
check 'copies are counted where there are some' copied_over_tcp

# Each reader ends with an error as soon as its device goes away, and never before.
reader() { while dd if="$1" of=/dev/null bs=4k iflag=direct 2>/dev/null; do :; done; }
disconnect_under_io() {
  attach -i 1
  local disk pids=() pid
  disk=$(ns_dev $NQN 1)
  for _ in 1 2 3 4; do
    reader "$disk" &
    pids+=($!)
  done
  wait_until 20 reading "$disk"
  nvme disconnect -n $NQN
  wait_until 20 detached
  for pid in "${pids[@]}"; do wait_until 20 ended "$pid"; done
}
ended() { ! kill -0 "$1" 2>/dev/null; }
reading() { [ "$(awk '{ print $1 }' "/sys/block/$(basename "$1")/stat")" -gt 100 ]; }
check 'disconnect under I/O' disconnect_under_io

# The kernel makes one device of both ways to a namespace.
both() {
  local disk subsystem
  nvme connect "${AT[@]}" -n $NQN
  wait_until 20 ns_dev $NQN 1
  disk=$(ns_dev $NQN 1)
  head -c 1M /dev/urandom >"$SUITE_TMP/pattern"
  dd if="$SUITE_TMP/pattern" of="$disk" bs=64k oflag=direct
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN
  wait_until 20 two_ways
  subsystem=$(echo /sys/class/nvme-subsystem/nvme-subsys*)
  echo round-robin >"$subsystem/iopolicy"
  fio_verify "$disk" --size=$SIZE --offset=32M
  nvme disconnect -d "$(basename "$(over rdma)")"
  wait_until 20 one_way
  dd if="$disk" bs=64k count=16 iflag=direct | cmp - "$SUITE_TMP/pattern"
  nvme disconnect -n $NQN
  wait_until 20 detached
}
# over TRANSPORT: the controller that is reached so.
over() {
  local ctrl
  for ctrl in $(ctrl_dev $NQN); do
    [ "$(cat "/sys/class/nvme/$(basename "$ctrl")/transport")" != "$1" ] || { echo "$ctrl" && return; }
  done
  return 1
}
live_over() { [ "$(cat "/sys/class/nvme/$(basename "$(over "$1")")/state")" = live ]; }
two_ways() {
  local paths=(/sys/class/nvme/nvme*/nvme*c*n*)
  live_over rdma && live_over tcp && [ ${#paths[@]} -ge 8 ] # four namespaces, twice
}
one_way() { ! over rdma; }
check 'RDMA and TCP to one namespace at once' both

round() {
  nvme connect "${AT[@]}" -n $NQN
  wait_until 20 ns_dev $NQN 1
  detach
}
# The target keeps registrations of buffers, and says how many: as many as the most that were ever in use at once needed. What the device has
# beyond these, and all else on it, must be as it was.
registered() { nvmfctl rpc nvmf_get_stats | jq '[.poll_groups[].transports[].devices[]?.registrations] | add'; }
beyond_registered() {
  local all registrations
  all=$(resources)
  registrations=${all#* mr }
  echo "${all%% mr *} mr registered and $((${registrations%% *} - $(registered))) ctx${all##* ctx}"
}
as_before() { expect 'resources' "$1" "$(beyond_registered)"; }
rounds() {
  local n before
  for n in 1 2 3; do round; done
  wait_until 20 no_queue
  before=$(beyond_registered)
  for ((n = 0; n < ROUNDS * NVMF_SOAK; n++)); do round; done
  wait_until 20 as_before "$before"
}
check 'connections leave nothing behind' rounds

# A host is killed while its data are under way: what was outstanding then comes back undone, which the target counts.
buffers() { nvmfctl rpc nvmf_get_stats | jq '[.poll_groups[].buffers_in_use] | add'; }
counter() { work | awk -F= -v name="$1" '$1 == name { n = $2 } END { print n + 0 }'; }
beyond() { [ "$(counter "$1")" -ge "$2" ]; }
# The host takes 4 responses to its 24 commands, which hold the rest up. When the target has posted a READ for each write, and WRITE and SEND for each
# read, at most 4 SENDs, 5 WRITEs and 12 READs of these 36 can be done.
dies() {
  local undone posted
  undone=$(counter failed_wrs) posted=$(counter total_send_wrs)
  start dying rdma-peer dying $HERE:4420 $NQN 2
  wait_until 20 beyond total_send_wrs $((posted + 36))
  stop dying KILL
  wait_until 20 no_queue
  beyond failed_wrs $((undone + 15))
}
deaths() {
  local n before held
  for n in 1 2 3; do dies; done
  before=$(beyond_registered) held=$(buffers)
  for ((n = 0; n < DEATHS * NVMF_SOAK; n++)); do dies; done
  wait_until 20 as_before "$before"
  expect 'buffers in use' "$held" "$(buffers)"
  echo "$(counter failed_wrs) work requests came back undone; buffers in use: $held"
}
CHECK_TIMEOUT_S=$((120 * NVMF_SOAK)) check 'hosts killed in the middle of transfers leave nothing behind' deaths
terminates() {
  stop target
  wait_until 10 clean
}
clean() { rdma resource show | tee /dev/stderr | grep -q 'qp 1 cm_id 0 mr 0 ctx 0'; }
check 'the target stops and leaves nothing on the device' terminates
