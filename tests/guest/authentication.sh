#!/bin/bash
# authentication.sh: DH-HMAC-CHAP of the Linux kernel's NVMe/TCP host with nvmf-target: right and wrong secrets, either direction, every hash and group.
# guest: --uml --timeout 600
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite authentication

NQN=nqn.2024-01.org.example:storage
HOST=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0001
OPEN=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0002
CONFIG=$SUITE_TMP/target.toml
KEYS=$SUITE_TMP/keys
mkdir -m 700 "$KEYS"

# config [EXTRA-LINES]: a subsystem for two hosts, one of which has to authenticate.
config() {
  cat <<TOML
listen = ["tcp://127.0.0.1:4420", "rdma://10.96.0.1:4420"]
${1:-}
[[host]]
nqn = "$HOST"
dhchap-key-file = "$KEYS/host"
dhchap-ctrl-key-file = "$KEYS/ctrl"
[[subsystem]]
nqn = "$NQN"
allowed-hosts = ["$HOST", "$OPEN"]
[[subsystem.namespace]]
kind = "file"
path = "/dev/shm/blocks"
size = "32M"
TOML
}
# secret NAME HMAC [NQN]: a new secret in $KEYS/NAME.
secret() { (umask 077 && nvme gen-dhchap-key --hmac="$2" -n "${3:-$HOST}" >"$KEYS/$1"); }
key() { cat "$KEYS/$1"; }
said() { grep -q -- "$1" "$SUITE_OUT/target.log"; }

device() {
  ip link set dummy0 up
  ip address add 10.96.0.1/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
}
prepare 'an RDMA device in software' device
secret host 1
secret ctrl 1 $NQN
secret other 1
config >"$CONFIG"
start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
prepare 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

connect() { nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -i 1 -q "$HOST" -I "${HOST##*:}" "$@"; }
detached() { ! ctrl_dev $NQN; }
detach() {
  nvme disconnect -n $NQN
  wait_until 20 detached
}
verify() {
  wait_until 20 ns_dev $NQN 1
  fio_verify "$(ns_dev $NQN 1)" --bs=64k --size=8M
}
works() {
  connect "$@"
  verify
  detach
}
reload() {
  local before
  before=$(reloads)
  config "$@" >"$CONFIG"
  kill -HUP "$(pid target)"
  wait_until 10 reloaded "$before"
}
reloads() { grep -c 'configuration reloaded' "$SUITE_OUT/target.log" || true; }
reloaded() { [ "$(reloads)" -gt "$1" ]; }

check 'the right secret, and I/O' works -S "$(key host)"
both_queues() { [ "$(dmesg | grep -c 'authenticated with hash')" -ge 1 ] && said 'host authenticated'; }
check 'both sides say so' both_queues
check 'the controller shows its secret too' works -S "$(key host)" -C "$(key ctrl)"
controller_said() { dmesg | grep -q 'qid 0: controller authenticated'; }
check 'the kernel found it right' controller_said

refuse 'a wrong secret' 'failed|error|denied|rejected' connect -S "$(key other)"
check 'the log says why' wait_until 10 said "the host's response is not that of its secret"
refuse 'no secret' 'failed|error|key' connect
check 'the log says what to do' wait_until 10 said 'nvme connect --dhchap-secret'
refuse 'a wrong controller secret' 'failed|error|denied|rejected' connect -S "$(key host)" -C "$(key other)"
check 'the log says that the host gave up' wait_until 10 said 'the host gave up'
hidden() { ! grep -E "$(cut -c12-30 "$KEYS/host")|$(cut -c12-30 "$KEYS/ctrl")" "$SUITE_OUT/target.log"; }
check 'no secret is in the log' hidden

unlocked() {
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -i 1 -q $OPEN -I "${OPEN##*:}"
  verify
  detach
}
check 'a host without a key needs none' unlocked
discovers() { nvme discover -t tcp -a 127.0.0.1 -s 4420 -q $HOST | grep -q "subnqn: *$NQN\$"; }
check 'discovery is open' discovers

over_rdma() { nvme connect -t rdma -a 10.96.0.1 -s 4420 -n $NQN -q "$HOST" -I "${HOST##*:}" -S "$(key host)"; }
refuse 'a host with a key over RDMA' 'failed|error' over_rdma
check 'the log says that it must use TCP' wait_until 10 said 'authentication over RDMA is not supported'

# Transformations of the secret, hashes and groups.
transformed() {
  secret host "$1"
  reload
  works -S "$(key host)"
}
for hmac in 0 2 3; do check "a secret with transformation $hmac" transformed $hmac; done
agreed() {
  reload "$(printf '[authentication]\nhashes = ["%s"]\ndh-groups = ["%s"]' "$1" "$2")"
  dmesg -C
  works -S "$(key host)" -C "$(key ctrl)"
  dmesg | grep "authenticated with hash hmac($1) dhgroup $2"
}
for hash in sha256 sha384 sha512; do check "$hash" agreed $hash null; done
for group in ffdhe2048 ffdhe3072 ffdhe4096 ffdhe6144 ffdhe8192; do check "$group" agreed sha512 $group; done

# Reconnecting and changing keys.
live() { [ "$(cat "/sys/class/nvme/$(basename "$(ctrl_dev $NQN)")/state")" = live ]; }
again() {
  connect -S "$(key host)" -C "$(key ctrl)"
  verify
  stop target KILL
  rm "$SUITE_TMP/ready"
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
  wait_until 20 test -s "$SUITE_TMP/ready"
  wait_until 40 said 'host authenticated'
  wait_until 40 live
  fio_verify "$(ns_dev $NQN 1)" --bs=64k --size=8M
}
check 'the host authenticates again after a restart of the target' again
resets() {
  nvme reset "$(ctrl_dev $NQN)"
  wait_until 20 live
  fio_verify "$(ns_dev $NQN 1)" --bs=64k --size=8M
}
check 'and after a reset' resets
changed() {
  cp "$KEYS/host" "$KEYS/old"
  secret host 1
  reload
  wait_until 20 said 'keys were changed'
  nvme disconnect -n $NQN
  connect -S "$(key old)" && return 1
  works -S "$(key host)"
}
check 'a changed key ends what was connected with the old one' changed

readable() {
  chmod 644 "$KEYS/host"
  nvmf-target --config "$CONFIG" --check
}
refuse 'a key file that others can read' 'chmod 600' readable
check 'SIGTERM ends the target' stop target
well() { ! grep panicked "$SUITE_OUT/target.log"; }
check 'its log holds no panic' well
