# shellcheck shell=bash
# lib.sh: what suites share, those that run inside a guest and those that run on this machine. Sourced by them as `. "$GUEST_LIB"`.
# docs/HACKING.md shows how one is written.
#
#   suite NAME                        begins; when the script ends, the kernel's log is checked and the sum is printed
#   check NAME CMD [ARGS]             CMD must succeed; a function fails at its first command that fails
#   prepare NAME CMD [ARGS]           a check that others need: it is made whatever NVMF_ONLY says
#   refuse NAME REGEX CMD [ARGS]      CMD must fail, and say something that matches REGEX
#   expect WHAT WANT GOT              inside a check: the two must be equal
#   wait_until SECONDS CMD [ARGS]     tries CMD until it succeeds; what it said last is printed if it never does
#   start NAME CMD [ARGS]             a daemon, its output in $SUITE_OUT/NAME.log; `pid NAME`, `stop NAME [SIGNAL]`
#   on_failure FILE...                further logs whose ends are shown when a check fails
#   at_end CMD [ARGS]                 what cleans up after a suite on this machine; runs last, however the suite ends
#
# Each check prints one line with its time. A check that fails prints its output, the ends of the logs and what the kernel
# logged meanwhile, and makes the suite fail. A check that takes longer than CHECK_TIMEOUT_S (60; 180 in QEMU) fails and is left
# behind, so that a process that nothing can kill holds up nothing but itself. A check is a process of its own: a variable
# set in it is gone afterwards.
#
# GUEST_KIND    uml, qemu or host
# SUITE_OUT     where the output of all checks (checks.log), the daemons' logs and the kernel's (dmesg.log) are kept; in a
#               guest it is /out
# SUITE_TMP     a folder that goes with the suite
# NVMF_SOAK     how many times as often to do what a suite repeats: 1, or more in `make soak`
# NVMF_ONLY     a regular expression: checks with other names are left out, but for those that `prepare`
#
# nvmet.sh, sourced below, sets up the kernel's target and finds devices.

: "${NVMF_SOAK:=1}" "${NVMF_ONLY:=}" "${CHECK_TIMEOUT_S:=$((60 * NVMF_SOAK))}"
[ "$GUEST_KIND" != qemu ] || CHECK_TIMEOUT_S=$((3 * CHECK_TIMEOUT_S)) # emulation is slow, and slower on a busy machine
# Lines of the kernel's log that fail a suite, and (empty: none) those of them that a suite expects.
KERNEL_ALARMS='BUG:|Oops|general protection fault|WARNING: CPU|blocked for more than|soft lockup|rcu.*stall|Kernel panic'
KERNEL_ALARMS_EXPECTED=''

SUITE_OUT=${SUITE_OUT:-/out}
SUITE_TMP=$(mktemp -d /tmp/suite.XXXXXX)
_suite='' _passed=0 _failed=0 _prepared=0 _logs=() _at_end=() _job='' _status=0 _took_us=0 _output='' _outcomes=''

. "$(dirname "${BASH_SOURCE[0]}")/nvmet.sh"

suite() {
  _suite=$1
  set +e
  : >"$SUITE_OUT/checks.log"
  exec {_outcomes}<> <(:)
  trap _finish EXIT
}

# _in_guest: whether the kernel is the suite's own.
_in_guest() { [ "$GUEST_KIND" != host ]; }

# _us: microseconds since some fixed moment.
_us() { printf '%s\n' "${EPOCHREALTIME/[.,]/}"; }

# _outcome ok|FAILED NAME [REMARK]: counts and prints what _run found.
_outcome() {
  printf '%-6s %-64s %4d.%02d s%s\n' "$1" "$2" $((_took_us / 1000000)) $((_took_us % 1000000 / 10000)) "${3:+  $3}"
  if [ "$1" = ok ]; then _passed=$((_passed + 1)); else _failed=$((_failed + 1)) && _explain; fi
}

# _run NAME CMD [ARGS]: runs CMD as a process group with errexit on. Sets _status (late: it took too long), _took_us and _output.
_run() {
  local begin ended status number ignored
  _output=$SUITE_TMP/output.$((_passed + _failed))
  ! _in_guest || echo "check: $1" >/dev/kmsg
  shift
  begin=$(_us)
  # Bash ignores errexit in all that runs inside a condition, and a check would then pass whatever its first steps did.
  ignored=$(set -e; false; echo yes)
  if [ -n "$ignored" ]; then
    echo "${FUNCNAME[1]} stands in a condition (if, &&, ||, !), where failures go unseen: call it as a plain command" >"$_output"
    _status=2 _took_us=0
    return
  fi
  # The outcome comes through a pipe, with a number, since a check that was left behind may end during a later one.
  number=$((_passed + _failed)) _status=late
  set -m # a process group for the check
  (
    trap - EXIT
    set +m
    (set -euo pipefail && "$@") >"$_output" 2>&1 </dev/null
    echo "$number $?" >&"$_outcomes"
  ) &
  _job=$!
  set +m
  while read -r -t "$CHECK_TIMEOUT_S" -u "$_outcomes" ended status; do
    [ "$ended" != "$number" ] || { _status=$status && break; }
  done
  if [ "$_status" = late ]; then
    ! _in_guest || echo w >/proc/sysrq-trigger # names the tasks that are stuck, in the kernel's log
    disown "$_job"
    kill -KILL -- "-$_job"
  else
    wait "$_job"
    # What a check that failed had started in the background would disturb the next ones.
    [ "$_status" = 0 ] || kill -KILL -- "-$_job"
  fi 2>/dev/null
  _job=''
  _took_us=$(($(_us) - begin))
  { echo "== ${*@Q}: exit code $_status" && cat "$_output"; } >>"$SUITE_OUT/checks.log"
}

# _explain: after a failed check: what it said, the ends of the logs, the kernel's words.
_explain() {
  local log daemons=()
  tail -n 60 "$_output" | sed 's/^/    | /'
  for log in "$SUITE_TMP"/*.pid; do daemons+=("$SUITE_OUT/$(basename "$log" .pid).log"); done
  for log in "${daemons[@]}" "${_logs[@]}"; do
    [ -s "$log" ] && echo "    $log ends:" && tail -n 25 "$log" | sed 's/^/    | /'
  done
  _in_guest || return 0
  echo '    the kernel said meanwhile:'
  dmesg | tac | sed '/] check: /q' | tac | tail -n 40 | sed 's/^/    | /'
}

# _left_out NAME: whether NVMF_ONLY leaves a check out.
_left_out() { [ -n "$NVMF_ONLY" ] && ! [[ $1 =~ $NVMF_ONLY ]]; }

prepare() {
  local NVMF_ONLY=''
  _prepared=$((_prepared + 1))
  check "$@"
}

check() {
  local name=$1
  if _left_out "$name"; then return; fi
  shift
  _run "$name" "$@"
  case $_status in
    0) _outcome ok "$name" ;;
    late) _outcome FAILED "$name" "not done in $CHECK_TIMEOUT_S s" ;;
    *) _outcome FAILED "$name" "exit code $_status" ;;
  esac
}

refuse() {
  local name=$1 pattern=$2
  if _left_out "$name"; then return; fi
  shift 2
  _run "$name" "$@"
  if [ "$_status" = 0 ]; then
    _outcome FAILED "$name" 'it was accepted'
  elif [ "$_status" = late ]; then
    _outcome FAILED "$name" "neither accepted nor refused in $CHECK_TIMEOUT_S s"
  elif ! grep -qE -- "$pattern" "$_output"; then
    _outcome FAILED "$name" "refused (exit code $_status), but not with: $pattern"
  else
    _outcome ok "$name"
  fi
}

expect() {
  [ "$2" = "$3" ] || { printf '%s: expected "%s", got "%s"\n' "$1" "$2" "$3" && return 1; }
}

wait_until() {
  local limit_us said pause=0.01 nothing
  limit_us=$(($(_us) + $1 * 1000000))
  shift
  # A read that nothing ever answers waits without a process of its own.
  exec {nothing}<> <(:)
  until said=$("$@" 2>&1); do
    if [ "$(_us)" -ge "$limit_us" ]; then
      printf 'waited in vain for: %s\n%s' "$*" "${said:+$said$'\n'}"
      exec {nothing}>&-
      return 1
    fi
    read -r -t "$pause" -u "$nothing" || true
    pause=0.05
  done
  exec {nothing}>&-
}

start() {
  local name=$1
  shift
  setsid "$@" >>"$SUITE_OUT/$name.log" 2>&1 </dev/null &
  echo $! >"$SUITE_TMP/$name.pid"
}

pid() { cat "$SUITE_TMP/$1.pid"; }

# stop NAME [SIGNAL]: sends SIGNAL (TERM) and waits until the process is gone.
stop() {
  local process
  process=$(pid "$1")
  kill -s "${2:-TERM}" "$process"
  wait_until 20 _gone "$process"
}
_gone() { [ ! -e "/proc/$1" ] || [ "$(awk '{ print $3 }' "/proc/$1/stat")" = Z ]; }

on_failure() { _logs+=("$@"); }
at_end() { _at_end=("$@"); }

_no_alarms() {
  local alarms
  alarms=$(dmesg | grep -E "$KERNEL_ALARMS" || true)
  [ -z "$KERNEL_ALARMS_EXPECTED" ] || alarms=$(grep -vE "$KERNEL_ALARMS_EXPECTED" <<<"$alarms" || true)
  [ -z "$alarms" ] || { echo "$alarms" && return 1; }
}

_finish() {
  local status=$?
  # Bash runs this also in a child that a signal reaches before it has become another program.
  [ $BASHPID = $$ ] || exit "$status"
  trap - EXIT
  # Whoever read what is said here may be gone: what was made is taken away all the same.
  trap '' PIPE
  if [ "$status" != 0 ]; then
    _took_us=0 _output=/dev/null
    _outcome FAILED "the suite $_suite ended early" "exit code $status"
  fi
  local checks=$((_passed + _failed - _prepared)) left
  if _in_guest; then
    prepare 'the kernel reported no bug' _no_alarms
    dmesg >/out/dmesg.log
  else
    # A guest ends with all that runs in it; here a check that was interrupted ends, the suite cleans up, and the daemons are
    # ended, each with its own session.
    [ -z "$_job" ] || kill -KILL -- "-$_job" 2>/dev/null
    [ ${#_at_end[@]} = 0 ] || "${_at_end[@]}"
    for left in "$SUITE_TMP"/*.pid; do [ ! -e "$left" ] || kill -KILL -- "-$(cat "$left")" 2>/dev/null; done
  fi
  rm -rf "$SUITE_TMP"
  [ "$checks" != 0 ] || { echo "the suite $_suite checked nothing" && _failed=1; }
  printf '%d passed, %d failed\n' "$_passed" "$_failed"
  exit $((_failed != 0))
}
