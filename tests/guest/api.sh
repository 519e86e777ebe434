#!/bin/bash
# api.sh: the Linux kernel's host while nvmfctl changes what it is connected to: namespaces, sizes, hosts, listeners, and a killed target. Then
# the API over TCP, with OpenSSL's certificates and its client.
# guest: --uml --timeout 900
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

# The same API over TCP.
PKI=$SUITE_TMP/pki
TLS_PORT=4421
signed() {
  openssl req -newkey "$2" -nodes -keyout "$PKI/$1.key" -out "$PKI/$1.csr" -subj "/CN=$1"
  openssl x509 -req -in "$PKI/$1.csr" -CA "$PKI/ca.pem" -CAkey "$PKI/ca.key" -CAcreateserial -days 2 -out "$PKI/$1.pem" \
    -extfile <(printf 'subjectAltName=DNS:%s,IP:127.0.0.1\n' "$1")
}
pki() {
  mkdir "$PKI"
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$PKI/ca.key" -out "$PKI/ca.pem" -days 2 -subj /CN=authority
  signed target rsa:2048
  signed admin ed25519
  signed monitor rsa:2048
  openssl req -x509 -newkey ed25519 -nodes -keyout "$PKI/own.key" -out "$PKI/own.pem" -days 2 -subj /CN=admin
}
check 'an authority, a target and clients have certificates of OpenSSL' pki
serve_tls() {
  stop target
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --rpc "$NVMF_RPC" --state-dir "$SUITE_TMP/state" --ready-file "$SUITE_TMP/ready" --rpc-tls 127.0.0.1:$TLS_PORT \
    --rpc-cert "$PKI/target.pem" --rpc-key "$PKI/target.key" --rpc-client-ca "$PKI/ca.pem" --rpc-client admin --rpc-read-only-client monitor
  wait_until 20 test -s "$SUITE_TMP/ready"
}
check 'the target serves its API over TCP too' serve_tls
over_tls() {
  local client=$1
  shift
  nvmfctl --socket tls://127.0.0.1:$TLS_PORT --tls-ca "$PKI/ca.pem" --tls-cert "$PKI/$client.pem" --tls-key "$PKI/$client.key" "$@"
}
changed() { over_tls admin bdev create null far 1M && over_tls monitor bdev list | grep far; }
check 'nvmfctl changes the target from afar' changed
by_environment() {
  NVMF_RPC=tls://127.0.0.1:$TLS_PORT NVMF_RPC_TLS_CA=$PKI/ca.pem NVMF_RPC_TLS_CERT=$PKI/admin.pem NVMF_RPC_TLS_KEY=$PKI/admin.key nvmfctl bdev delete far
}
check 'and takes address and files from the environment' by_environment
refuse 'a client that may read changes nothing' 'may only read' over_tls monitor bdev create null far 1M
refuse 'a certificate that nobody signed is turned away' 'alert: (UnknownCA|CertificateUnknown)' over_tls own version
refuse 'without a certificate nvmfctl says what is missing' 'tls-cert' nvmfctl --socket tls://127.0.0.1:$TLS_PORT version
# What is no JSON has the target end the connection, and s_client with it.
s_client() { printf '{"jsonrpc":"2.0","method":"spdk_get_version","id":1}x' | openssl s_client -quiet -verify_return_error -connect 127.0.0.1:$TLS_PORT -CAfile "$PKI/ca.pem" "$@"; }
openssl_talks() {
  s_client -cert "$PKI/admin.pem" -key "$PKI/admin.key" >"$SUITE_TMP/said"
  jq -es '(.[0].result.version | startswith("nvmf-target")) and .[1].error.code == -32700' "$SUITE_TMP/said"
}
check "OpenSSL's client talks to it" openssl_talks
refuse 'and is turned away without a certificate' 'certificate required' s_client
refuse 'or with an older TLS' 'protocol version' s_client -tls1_2 -cert "$PKI/admin.pem" -key "$PKI/admin.key"
