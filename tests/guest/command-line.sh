#!/bin/bash
# command-line.sh: nvme-cli and nvmf-initiator say the same of the same target, and take each other's files.
# guest: --uml --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite command-line

NQN=nqn.2024-01.org.example:storage
OTHER=nqn.2024-01.org.example:other
AT=(-t tcp -a 127.0.0.1 -s 4420)
ours() { nvmf-initiator --run-dir "$SUITE_TMP/run" "$@"; }

config() {
  cat >"$SUITE_TMP/target.toml" <<TOML
listen = ["tcp://127.0.0.1:4420"]
referrals = ["tcp://127.0.0.1:4421"]
[[subsystem]]
nqn = "$NQN"
model = "Command Line"
serial = "SERIAL1"
allow-any-host = true
[[subsystem.namespace]]
nsid = 1
kind = "memory"
size = "64M"
block-size = 512
[[subsystem.namespace]]
nsid = 3
kind = "null"
size = "1G"
block-size = 4096
[[subsystem]]
nqn = "$OTHER"
allow-any-host = true
[[subsystem.namespace]]
nsid = 1
kind = "null"
size = "1M"
TOML
}
config
start target nvmf-target --config "$SUITE_TMP/target.toml" --ready-file "$SUITE_TMP/ready"
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"

# The host's identity, made by ours as nvme-cli's package would have made it.
identity() {
  rm -f /etc/nvme/hostnqn /etc/nvme/hostid
  ours discover "${AT[@]}" >/dev/null 2>&1
  expect 'nvme show-hostnqn' "$(cat /etc/nvme/hostnqn)" "$(nvme show-hostnqn)"
  expect 'hostid' "nqn.2014-08.org.nvmexpress:uuid:$(cat /etc/nvme/hostid)" "$(nvme show-hostnqn)"
}
check 'nvme-cli takes the host NQN that we made' identity

# letters COMMAND OPTION...: the letters of these options, as the help of nvme-cli and of ours has them.
letters() {
  local option theirs mine
  for option in "${@:2}"; do
    # It ends with an error after it has helped.
    theirs=$({ nvme "$1" --help 2>&1 || true; } | sed -n "s/.*--$option\(=<[A-Z]*>\)\?, \(-.\) .*/\2/p")
    mine=$(ours "$1" --help | sed -n "s/^ *\(-.\), --$option\( .*\)\?\$/\1/p")
    expect "$1 --$option" "${theirs:-nothing}" "${mine:-nothing of ours}"
  done
}
COMMON=(transport traddr trsvcid host-traddr host-iface hostnqn hostid nqn nr-io-queues queue-size keep-alive-tmo reconnect-delay
  ctrl-loss-tmo tos duplicate-connect disable-sqflow hdr-digest data-digest output-format)
check 'connect has the letters of nvme-cli' letters connect "${COMMON[@]}"
check 'discover has them' letters discover "${COMMON[@]}"
check 'connect-all has them' letters connect-all "${COMMON[@]}" config quiet
check 'disconnect has them' letters disconnect nqn device

discover_text() {
  # Referrals of ours are a log more.
  diff <(nvme discover "${AT[@]}") <(ours discover --no-referrals "${AT[@]}")
}
check 'discover says the same' discover_text
discover_json() {
  diff <(nvme discover "${AT[@]}" -o json | jq -S .) <(ours discover --no-referrals "${AT[@]}" -o json | jq -S 'del(.address)')
}
check 'discover -o json says the same' discover_json

attach() {
  nvme connect "${AT[@]}" -n $NQN
  wait_until 20 ns_dev $NQN 1
  wait_until 20 ns_dev $NQN 3
  ours connect "${AT[@]}" -n $NQN --block fuse
}
check 'both connect' attach
# both FILTER THEIRS OURS COUNT: two JSON documents are alike in all that this jq filter takes of the keys they share, COUNT at least.
both() {
  # shellcheck disable=SC2016 # the variables are those of jq
  local alike='def trim: if type == "string" then sub(" +$"; "") else . end; map(map_values(trim)) |
    (map(keys) | .[0] - (.[0] - .[1])) as $common | map(with_entries(select(.key as $key | $common | index($key))))'
  jq -es "$alike | map($1) | .[0] == .[1] and (.[0] | length) >= $4" <(echo "$2") <(echo "$3") ||
    diff <(jq -S . <<<"$2") <(jq -S . <<<"$3")
}
disk() { ours list --json | jq -er --argjson nsid "$1" '.Devices[] | select(.NameSpace == $nsid).DevicePath'; }
id_ctrl() { both 'del(.cntlid)' "$(nvme id-ctrl "$(ctrl_dev $NQN)" -o json)" "$(ours id-ctrl nvmf0 -o json)" 60; }
check 'id-ctrl -o json has the same values' id_ctrl
id_ns() {
  local nsid
  for nsid in 1 3; do both . "$(nvme id-ns "$(ns_dev $NQN $nsid)" -o json)" "$(ours id-ns "$(disk $nsid)" -o json)" 25; done
}
check 'id-ns -o json has the same values' id_ns
raw() {
  cmp -i 80 -n 4016 <(nvme id-ctrl "$(ctrl_dev $NQN)" -b) <(ours id-ctrl nvmf0 -b)
  cmp <(nvme id-ns "$(ns_dev $NQN 3)" -b) <(ours id-ns "$(disk 3)" -b)
}
check 'id-ctrl and id-ns give the same bytes, but for the CNTLID' raw
list() {
  local filter='[.Devices[] | del(.DevicePath, .UsedBytes)] | sort_by(.NameSpace)'
  diff <(nvme list -o json | jq -S "$filter | map(map_values(if type == \"string\" then sub(\" +\$\"; \"\") else . end))") \
    <(ours list -o json | jq -S "$filter")
}
check 'list -o json names the same devices' list
detach() {
  nvme disconnect -n $NQN
  ours disconnect -n $NQN
}
check 'both disconnect' detach

# A configuration that libnvme wrote. It writes down what is connected.
dumped() {
  nvme connect "${AT[@]}" -n $NQN -i 2 -g
  wait_until 20 ns_dev $NQN 1
  nvme connect "${AT[@]}" -n $NQN --dump-config >"$SUITE_TMP/config.json" || true
  nvme disconnect -n $NQN
  jq . "$SUITE_TMP/config.json"
  ours connect-all --config "$SUITE_TMP/config.json" --block none
  ours list -o json | jq -e --arg nqn $NQN '.controllers | map(.subnqn) == [$nqn]'
  ours disconnect --all
}
check 'connect-all takes a configuration that nvme-cli wrote' dumped
conf() {
  printf '# both read this\n--transport=tcp --traddr=127.0.0.1 --trsvcid=4420\n' >/etc/nvme/discovery.conf
  nvme connect-all
  wait_until 20 ns_dev $NQN 1
  wait_until 20 ns_dev $OTHER 1
  nvme disconnect -n $NQN
  nvme disconnect -n $OTHER
  # The referral leads nowhere, which is said, and nothing else suffers from it.
  ! ours connect-all --block none 2>"$SUITE_TMP/said" || return 1
  grep 4421 "$SUITE_TMP/said"
  ours list -o json | jq -e --arg nqn $NQN --arg other $OTHER '.controllers | map(.subnqn) | sort == ([$nqn, $other] | sort)'
  ours disconnect --all
}
check 'connect-all by the same discovery.conf connects the same' conf
