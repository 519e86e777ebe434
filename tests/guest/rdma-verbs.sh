#!/bin/bash
# rdma-verbs.sh: shows that our RDMA verbs do on a device what the transport needs of them, and leave nothing behind.
# guest: --uml --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite rdma-verbs

device() {
  ip link set dummy0 up
  ip address add 10.96.0.1/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
}
check 'an RDMA device in software' device
work() { rdma-peer verbs 10.96.0.1:4420 | tee "$SUITE_TMP/log"; }
check 'every kind of work request, private data, refusal, a wrong key, memory windows' work
# What the documents say of soft RoCE: where a newer one holds the bounds of windows too, this is to be turned round, and they with it.
bounds() {
  grep 'one byte' "$SUITE_TMP/log"
  grep -q 'NOT refused by this device: one byte' "$SUITE_TMP/log"
}
check 'soft RoCE holds windows to the bounds of the registration under them, not to their own' bounds
nothing_left() { rdma resource show | tee /dev/stderr | grep -q 'qp 1 cm_id 0 mr 0 ctx 0'; }
check 'nothing is left on the device' nothing_left # qp 1 is the device's own
