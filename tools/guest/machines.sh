# shellcheck shell=bash
# machines.sh: several guests joined by a network that a suite on this machine can cut. Sourced after lib.sh by suites with `# guest: host`.
#
#   private_network                    first of all: goes on in a network namespace of its own, with a switch in it; needs root
#   machine NAME ADDR/LEN OPTIONS...   boots a guest with these options of `guest run`, on a cable of its own to the switch
#   on NAME CMD [ARGS]                 runs CMD in the guest, and ends as it ends; CMD may be a function of the suite
#   cut NAME, mend NAME                takes the machine's cable out of the switch, without a word to either side; puts it back
#   packets_from NAME, packets_to NAME what the machine sent into its cable so far, and what came to it out of the switch
#   machines_are_well                  inside a check: no kernel reported a bug
#
# A guest waits for nothing but commands, so order between machines is the order of `on` in the suite. It shares the functions of the
# suite, and the variables that MACHINE_VARIABLES names. What a guest has in /out is in $SUITE_OUT/NAME here, logs of its daemons too.
# The guests end with the suite.

MACHINE_VARIABLES=()
_machines=()

private_network() {
  [ -n "${NVMF_PRIVATE_NETWORK:-}" ] || exec env NVMF_PRIVATE_NETWORK=yes unshare --net bash "$0"
  unset NVMF_PRIVATE_NETWORK
  ip link set lo up
  # Nothing is on the cables but what machines send.
  echo 1 >/proc/sys/net/ipv6/conf/default/disable_ipv6
  ip link add switch type bridge
  ip link set switch up
}

machine() {
  local name=$1 address=$2
  shift 2
  ip tuntap add "$name" mode tap
  ip link set "$name" master switch up
  mkdir -p "$SUITE_OUT/$name/jobs"
  start "$name" tools/guest/guest run --out "$SUITE_OUT/$name" --net "$name=$address" "$@" tools/guest/agent.sh
  _machines+=("$name")
  at_end _machines_off
}

on() {
  local name=$1 jobs=$SUITE_OUT/$1/jobs job
  shift
  job=$(mktemp "$jobs/XXXXXX.making")
  {
    [ ${#MACHINE_VARIABLES[@]} = 0 ] || declare -p "${MACHINE_VARIABLES[@]}"
    declare -f
    printf '%q ' "$@"
  } >"$job"
  mv "$job" "${job%.making}.job"
  job=${job%.making}
  # It ends with the check that it is part of, or with its machine.
  wait_until 100000 _answered "$name" "$job"
  cat "$job.out"
  [ -e "$job.code" ] || { echo "the machine $name is gone" && return 125; }
  return "$(cat "$job.code")"
}
_answered() { [ -e "$2.code" ] || _gone "$(pid "$1")"; }

cut() { ip link set "$1" nomaster; }
mend() { ip link set "$1" master switch; }
packets_from() { awk -v card="$1:" '$1 == card { print $3 }' /proc/net/dev; }
packets_to() { awk -v card="$1:" '$1 == card { print $11 }' /proc/net/dev; }

machines_are_well() {
  local name
  for name in "${_machines[@]}"; do
    ! grep -E "$KERNEL_ALARMS" "$SUITE_OUT/$name/console.log"
  done
}

# A guest that does not end when it is asked is ended by its runner, which leaves nothing behind.
_machines_off() {
  local name
  for name in "${_machines[@]}"; do : >"$SUITE_OUT/$name/jobs/end"; done
  for name in "${_machines[@]}"; do
    wait_until 20 _gone "$(pid "$name")" || stop "$name"
  done
}
