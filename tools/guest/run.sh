#!/bin/bash
# run.sh: `guest run`: reads the options, writes down the job for the guest's init, starts the guest (run-uml.sh or
# run-qemu.sh), bounds its time and turns what it left into an exit code. `guest help` has the options.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

kind='' cpus=2 mem_mib='' timeout_s=300 out='' net='' disks=() nvmes=() variables=()
need() { [ $# -ge 2 ] || die "run: $1 needs a value"; }
while [ $# != 0 ]; do
  case $1 in
    --uml | --qemu) kind=${1#--} && shift ;;
    --cpus) need "$@" && cpus=$2 && shift 2 ;;
    --mem) need "$@" && mem_mib=$2 && shift 2 ;;
    --timeout) need "$@" && timeout_s=$2 && shift 2 ;;
    --out) need "$@" && out=$2 && shift 2 ;;
    --disk) need "$@" && disks+=("$2") && shift 2 ;;
    --nvme) need "$@" && nvmes+=("$2") && shift 2 ;;
    --net) need "$@" && net=$2 && shift 2 ;;
    --env) need "$@" && variables+=("$2") && shift 2 ;;
    --*) die "run: there is no option $1; see 'guest help'" ;;
    *) break ;;
  esac
done
[ $# != 0 ] || die "run: no script given; see 'guest help'"
[ -n "$kind" ] || die "run: say --uml or --qemu"
[ -r "$1" ] || die "run: cannot read the script $1"
[[ $cpus =~ ^[1-9][0-9]*$ && ${mem_mib:-1} =~ ^[1-9][0-9]*$ && $timeout_s =~ ^[1-9][0-9]*$ ]] || die "run: --cpus, --mem and --timeout take whole numbers"
[ "$kind" = qemu ] || [ ${#nvmes[@]} = 0 ] || die "run: --nvme needs --qemu: user-mode Linux has no emulated NVMe"
timeout_s=$((timeout_s * ${NVMF_SOAK:-1})) # `make soak` repeats more
setup=$(guest_ready "$kind") || die "run: no $kind guest is set up for this tree: run '$GUEST_DIR/guest setup $kind'"
script=$(realpath "$1") && shift

# Removed with all it holds. The guest's kernel is told it by name, on its command line.
job=$(mktemp -d "${TMPDIR:-/tmp}/nvmf-guest.XXXXXX")
[[ $job != *[[:space:],\"]* ]] || die "run: TMPDIR ($TMPDIR): a path with blanks, commas or quotes cannot be passed to the guest's kernel"
guest_pid=
# shellcheck disable=SC2317 # called by the trap
finish() {
  # Whatever the guest's monitor left: it leads a process group of its own.
  [ -z "$guest_pid" ] || kill -KILL -- "-$guest_pid" 2>/dev/null || true
  rm -rf "$job"
}
trap finish EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP
[ -n "$out" ] || out=$job/out
mkdir -p "$out/.guest"
out=$(realpath "$out")
[[ $out =~ ^[A-Za-z0-9_./@%+-]+$ ]] || die "run: --out $out: only letters, digits and _./@%+- can be passed to the guest's mount"
exec {lock}>"$out/.guest/lock"
flock -n "$lock" || die "run: another guest uses $out"
rm -f "$out/.guest/code"

# disk_file SPEC: the file behind a --disk or --nvme: itself, or a fresh one of that size.
disk_file() {
  local file
  if [[ $1 =~ ^[0-9]+[KMGT]$ && ! -e $1 ]]; then
    file=$(mktemp "$job/disk.XXXXXX")
    truncate -s "$1" "$file"
  else
    [ -r "$1" ] || die "run: cannot read the disk $1 (a file, or a size such as 64M)"
    file=$(realpath "$1")
  fi
  [[ $file != *[,:\ ]* ]] || die "run: $file: a disk's path must be free of commas, colons and blanks"
  printf '%s\n' "$file"
}

nodes=()
for i in "${!disks[@]}"; do
  disks[i]=$(disk_file "${disks[i]}")
  letter=$(printf '%b' "\\x$(printf %x $((97 + i)))")
  if [ "$kind" = uml ]; then nodes+=("/dev/ubd$letter"); else nodes+=("/dev/vd$letter"); fi
done
for i in "${!nvmes[@]}"; do
  properties=
  [[ ${nvmes[i]} == *:* ]] && properties=,${nvmes[i]#*:}
  nvmes[i]=$(disk_file "${nvmes[i]%%:*}")$properties
done

{
  printf 'GUEST_KIND=%q GUEST_OUT=%q GUEST_MODULES=%q\n' "$kind" "$out" "$setup/lib/modules"
  printf 'GUEST_SCRIPT=%q GUEST_CWD=%q GUEST_ARGS=(' "$script" "$PWD"
  [ $# = 0 ] || printf '%q ' "$@"
  if [ -z "$net" ]; then address=; elif [[ $net == *=* ]]; then address=${net#*=}; else address=10.98.0.2/24; fi
  printf ')\nGUEST_NET=%q\nexport GUEST_KIND GUEST_DISKS=%q GUEST_LIB=%q\n' "$address" "${nodes[*]}" "$GUEST_DIR/lib.sh"
  for name in "${!NVMF_@}"; do printf 'export %s=%q\n' "$name" "${!name}"; done
  for variable in "${variables[@]}"; do printf 'export %s=%q\n' "${variable%%=*}" "${variable#*=}"; done
} >"$job/job"

cp "$GUEST_DIR/init-uml.sh" "$GUEST_DIR/init.sh" "$job"

# The monitor gets a process group of its own, so that a signal reaches all of its processes, and only them.
set -m
CPUS=$cpus MEM_MIB=$mem_mib TIMEOUT_S=$timeout_s JOB=$job OUT=$out SETUP=$setup TAP=${net%%=*} \
  "$GUEST_DIR/run-$kind.sh" "${disks[@]}" -- "${nvmes[@]}" </dev/null &
guest_pid=$!
set +m
status=0
wait "$guest_pid" || status=$?

if [ -s "$out/.guest/code" ]; then
  status=$(<"$out/.guest/code")
elif [ "$status" = 124 ] || [ "$status" = 137 ]; then
  say "the guest was killed after $timeout_s s; the last words of its kernel:"
  tail -n 5 "$out/console.log" >&2 || true
  status=124
else
  say "the guest died without an exit code (its monitor's was $status); the last words of its kernel:"
  tail -n 20 "$out/console.log" >&2 || true
  status=125
fi
rm -rf "$out/.guest"
exit "$status"
