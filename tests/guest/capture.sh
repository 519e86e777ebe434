#!/bin/bash
# capture.sh: what hosts and nvmf-target say on the wire, as read by Wireshark's NVMe/TCP dissector, which is not ours.
# guest: --uml --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite capture
CHECK_TIMEOUT_S=$((3 * CHECK_TIMEOUT_S)) # the dissector is slow in a guest, and slower on a busy machine

NQN=nqn.2024-01.org.example:capture
AT=(-t tcp -a 127.0.0.1 -s 4420)

start target nvmf-target --nqn $NQN --memory 64M --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

# record NAME CMD [ARGS]: CMD, with what goes over port 4420 meanwhile in $SUITE_OUT/NAME.pcapng, and each PDU as the dissector
# reads it as a line in $SUITE_TMP/NAME.pdus, and the length of each TCP segment in $SUITE_TMP/NAME.bytes.
record() {
  local file=$SUITE_OUT/$1.pcapng log=$SUITE_TMP/$1.log name=$1 dumpcap
  shift
  dumpcap -q -i lo -f 'tcp port 4420 or udp port 9' -B 64 -w "$file" >"$log" 2>&1 &
  dumpcap=$!
  wait_until 10 grep -q '^File: ' "$log"
  "$@"
  wait_until 10 closed
  echo 'all is written' >/dev/udp/127.0.0.1/9
  wait_until 10 grep -q 'all is written' "$file"
  kill -INT $dumpcap
  wait $dumpcap
  cat "$log"
  grep -q '/0 (pcap:0/dumpcap:0/' "$log" # nothing dropped
  # It knows port 4420 as NVMe/TCP. Digests it computes only when told to.
  tshark -r "$file" -o nvme-tcp.check_hdgst:TRUE -o nvme-tcp.check_ddgst:TRUE -T pdml -J 'nvme-tcp nvme' 2>>"$SUITE_OUT/tshark.log" |
    grep -aE '<packet>|<proto name="(nvme-tcp|_ws.malformed)"|<field name="(nvme|nvme-tcp|_ws.expert.message)[."]' |
    cut -b 1-400 | flatten >"$SUITE_TMP/$name.pdus" # cut: blocks in hexadecimal
  tshark -r "$file" -Y tcp.len -T fields -e tcp.len 2>>"$SUITE_OUT/tshark.log" >"$SUITE_TMP/$name.bytes"
}
closed() { [ -z "$(ss -Htn state established '( sport = :4420 or dport = :4420 )')" ]; }
# flatten: PDML to one line for each PDU, as ` pdu FIELD=VALUE FIELD=VALUE … `. What the dissector complains of is a field
# too: malformed=, and expert= with the remark.
flatten() {
  awk '
    function value(line) { sub(/.* show="/, "", line); sub(/".*/, "", line); gsub(/ /, "_", line); return line }
    function flush() { if (pdu != "") print pdu " "; pdu = "" }
    /<proto name="nvme-tcp"/ { flush(); pdu = " pdu" ; next }
    /<packet>/ { flush() }
    /<proto name="_ws.malformed"/ { print " pdu malformed= " }
    pdu != "" && /<field name="(nvme|nvme-tcp|_ws.expert.message)[.a-z0-9_]*"/ {
      name = $0; sub(/.*<field name="/, "", name); sub(/".*/, "", name)
      sub(/^_ws.expert.message$/, "expert", name)
      pdu = pdu " " name "=" value($0)
    }
    END { flush() }'
}

# pdus NAME FIELD=VALUE...: the PDUs that have all of these fields.
pdus() {
  local field lines
  lines=$(grep '^ pdu' "$SUITE_TMP/$1.pdus")
  for field in "${@:2}"; do lines=$(grep -F " $field " <<<"$lines" || true); done
  printf '%s' "${lines:+$lines$'\n'}"
}
count() { pdus "$@" | wc -l; }
# values FIELD: that field of each of the PDUs that come in. sum FIELD: all of them added up.
values() { { grep -oE " $1=[^ ]*" || true; } | cut -d= -f2; }
sum() { values "$1" | awk '{ n += $1 } END { printf "%d\n", n }'; }

ICREQ=nvme-tcp.type=0 ICRESP=nvme-tcp.type=1 H2C_TERM=nvme-tcp.type=2 C2H_TERM=nvme-tcp.type=3 COMMAND=nvme-tcp.type=4
RESPONSE=nvme-tcp.type=5 H2C_DATA=nvme-tcp.type=6 C2H_DATA=nvme-tcp.type=7 R2T=nvme-tcp.type=9
SUCCESS=nvme-tcp.flags.pdu.data_success=1
ADMIN=nvme-tcp.cmd.qid=0x0000
WRITE=nvme.cmd.opc=0x01 EVENT=nvme.cmd.opc=0x0c

# well_formed NAME: the dissector has nothing to remark, and every byte of payload belongs to a PDU that it knows.
well_formed() {
  expect 'remarks' '' "$(pdus "$1" | grep -E ' (malformed|expert|nvme-tcp.unknown_data)=' || true)"
  local bytes
  bytes=$(awk '{ n += $1 } END { print n + 0 }' "$SUITE_TMP/$1.bytes")
  [ "$bytes" -gt 256 ] # two PDUs of 128 bytes begin each connection
  expect 'bytes of all PDUs' "$bytes" "$(pdus "$1" | sum nvme-tcp.plen)"
  expect 'unknown types' '' "$(pdus "$1" | grep -vE ' nvme-tcp.type=[0-79] ' || true)"
}
# answered NAME CONNECTIONS: each connection was initialized once, and each command but a waiting event request was answered once.
answered() {
  expect 'ICReq' "$2" "$(count "$1" $ICREQ)"
  expect 'ICResp' "$2" "$(count "$1" $ICRESP)"
  expect 'TermReqs' '0 0' "$(count "$1" $H2C_TERM) $(count "$1" $C2H_TERM)"
  expect 'commands answered' $(($(count "$1" $COMMAND) - $(count "$1" $COMMAND $ADMIN $EVENT))) \
    $(($(count "$1" $RESPONSE) + $(count "$1" $C2H_DATA $SUCCESS)))
}
# moved NAME IN-CAPSULE R2T READ: bytes that went with Write commands, that went after R2Ts, and that came, on I/O queues.
moved() {
  local hdgst ddgst
  hdgst=$(pdus "$1" $COMMAND $WRITE | grep -v " $ADMIN " | sum nvme-tcp.flags.pdu.hdgst)
  ddgst=$(pdus "$1" $COMMAND $WRITE | grep -v " $ADMIN " | sum nvme-tcp.flags.pdu.ddgst)
  # A capsule is a common header (8), a command (64), its digest, data, and their digest.
  expect 'bytes in capsules' "$2" $((
    $(pdus "$1" $COMMAND $WRITE | grep -v " $ADMIN " | sum nvme-tcp.plen) - 72 * $(pdus "$1" $COMMAND $WRITE | grep -vc " $ADMIN ") - 4 * hdgst - 4 * ddgst))
  expect 'bytes asked for by R2Ts' "$3" "$(pdus "$1" $R2T | sum nvme-tcp.r2t.length)"
  expect 'bytes in H2CData' "$3" "$(pdus "$1" $H2C_DATA | sum nvme-tcp.data.length)"
  # The kernel also looks for partitions when it finds a disk.
  [ "$(pdus "$1" $C2H_DATA | grep -v " $ADMIN " | sum nvme-tcp.data.length)" -ge "$4" ]
}
# digests NAME HEADER DATA: whether (1 or 0) all PDUs that may have a digest have it; those that are there are right.
digests() {
  local headers=0 data=0
  headers=$(($(count "$1") - $(count "$1" $ICREQ) - $(count "$1" $ICRESP)))
  # Capsules with data are those that say where it begins.
  data=$(($(count "$1" $H2C_DATA) + $(count "$1" $C2H_DATA) + $(pdus "$1" $COMMAND | grep -vc ' nvme-tcp.pdo=0 ')))
  expect 'right header digests' $(($2 * headers)) "$(count "$1" nvme-tcp.hdgst.status=1)"
  expect 'right data digests' $(($3 * data)) "$(count "$1" nvme-tcp.ddgst.status=1)"
  expect 'wrong digests' '0 0' "$(count "$1" nvme-tcp.hdgst.status=0) $(count "$1" nvme-tcp.ddgst.status=0)"
}

# Each host writes 4 times 4 KiB, twice 32 KiB, and reads 4 times 16 KiB: little, since the dissector is slow in a guest.
IN_CAPSULE=$((4 << 12)) BY_R2T=$((2 << 15)) READ=$((4 << 14))
linux() {
  local disk
  nvme connect "${AT[@]}" -n $NQN -i 1 "$@"
  wait_until 20 ns_dev $NQN 1
  disk=$(ns_dev $NQN 1)
  nvme id-ctrl "$(ctrl_dev $NQN)" >/dev/null
  dd if=/dev/zero of="$disk" bs=4k count=4 oflag=direct status=none
  dd if=/dev/zero of="$disk" bs=32k count=2 oflag=direct status=none
  dd if="$disk" of=/dev/null bs=16k count=4 iflag=direct status=none
  nvme disconnect -n $NQN
}
# session NAME HEADER-DIGESTS DATA-DIGESTS CONNECT-ARGS: all checks of one session of the kernel's host.
session() {
  check "Linux, $1: recorded" record "$1" linux "${@:4}"
  check "Linux, $1: no PDU is malformed" well_formed "$1"
  check "Linux, $1: every command is answered" answered "$1" 2
  check "Linux, $1: data goes by capsule, R2T and C2HData" moved "$1" $IN_CAPSULE $BY_R2T $READ
  check "Linux, $1: digests" digests "$1" "$2" "$3"
}
session plain 0 0
session both-digests 1 1 -g -G
session no-flow-control 0 0 --disable-sqflow
success_alone() {
  [ "$(count no-flow-control $SUCCESS)" -ge 4 ]
  expect 'SUCCESS under flow control' 0 "$(count plain $SUCCESS)"
}
check 'SUCCESS stands for a response only without SQ flow control' success_alone
discover() { nvme discover "${AT[@]}"; }
check 'discovery: recorded' record discovery discover
check 'discovery: no PDU is malformed' well_formed discovery
check 'discovery: every command is answered' answered discovery 1

# Our own host, in three runs: it has other habits.
ours() {
  local what="nvme+tcp://127.0.0.1:4420/$NQN?nsid=1"
  nvmf-bench --filename "$what" --rw write --bs 4k --size 16k "$@"
  nvmf-bench --filename "$what" --rw write --bs 32k --size 64k --iodepth 2 "$@"
  nvmf-bench --filename "$what" --rw read --bs 16k --size 64k --iodepth 4 "$@"
}
# our_session NAME HEADER-DIGESTS DATA-DIGESTS BENCH-ARGS
our_session() {
  check "nvmf-bench, $1: recorded" record "$1" ours "${@:4}"
  check "nvmf-bench, $1: no PDU is malformed" well_formed "$1"
  check "nvmf-bench, $1: every command is answered" answered "$1" 6
  check "nvmf-bench, $1: data goes by capsule, R2T and C2HData" moved "$1" $IN_CAPSULE $BY_R2T $READ
  check "nvmf-bench, $1: digests" digests "$1" "$2" "$3"
}
our_session our-host 0 0
our_session our-host-digests 1 1 --hdr-digest --data-digest

# A host that breaks a rule: after an ICReq, a PDU of a type that there is not.
broken() {
  exec {wire}<>/dev/tcp/127.0.0.1/4420
  { printf '\0\0\200\0\200\0\0\0' && head -c 120 /dev/zero; } >&"$wire"
  head -c 128 <&"$wire" | od -An -tx1 -N 8
  printf '\013\0\030\0\030\0\0\0%016d' 0 >&"$wire"
  timeout 10 cat <&"$wire" | od -An -tx1 # ends when the target has closed
  exec {wire}>&-
}
check 'a broken rule: recorded' record broken broken
terminated() {
  pdus broken $C2H_TERM
  expect 'C2HTermReq' 1 "$(count broken $C2H_TERM)"
  # Invalid PDU Header Field, in byte 0 of the header.
  expect 'fatal error status' 1 $(($(pdus broken $C2H_TERM | values nvme-tcp.c2htermreq.fes)))
  expect 'remarks' '' "$(pdus broken $C2H_TERM | grep -E ' (malformed|expert)=' || true)"
}
check 'the target says in a C2HTermReq what was wrong' terminated
check 'the target ends' stop target
