# shellcheck shell=bash
# steps.sh: runs the steps of a check one after another, says how long each took, goes on after a failure, and sums.
# Sourced by check.sh, test.sh and soak.sh.
#
#   step NAME CMD [ARGS]      one step: passed or failed
#   counted NAME CMD [ARGS]   a step that counts for itself: by cargo's `test result:` lines, or a last line `N passed, N failed`
#   finish                    prints the table of all steps and the sum, and exits

_passed=0 _failed=0 _table=()

# _record OK? NAME SECONDS PASSED FAILED
_record() {
  _passed=$((_passed + $4)) _failed=$((_failed + $5))
  _table+=("$(printf '%-6s %-28s %5d s   %4d passed, %d failed' "$1" "$2" "$3" "$4" "$5")")
  printf '== %s: %s, %d s\n' "$2" "$1" "$3"
}

step() {
  local name=$1 begin=$SECONDS
  shift
  printf '== %s\n' "$name"
  if "$@" </dev/null; then _record ok "$name" $((SECONDS - begin)) 1 0; else _record FAILED "$name" $((SECONDS - begin)) 0 1; fi
}

counted() {
  local name=$1 begin=$SECONDS output status good bad
  shift
  output=$(mktemp)
  printf '== %s\n' "$name"
  "$@" 2>&1 </dev/null | tee "$output"
  status=${PIPESTATUS[0]}
  read -r good bad < <(awk '
    /^test result: / { good += $4; bad += $6 }
    /^[0-9]+ passed, [0-9]+ failed$/ { good = $1; bad = $3 }
    END { print good + 0, bad + 0 }' "$output")
  rm -f "$output"
  # A failure that was not counted: it did not build, say, or ran nothing.
  if [ "$bad" = 0 ] && { [ "$status" != 0 ] || [ "$good" = 0 ]; }; then bad=1; fi
  _record "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "$name" $((SECONDS - begin)) "$good" "$bad"
}

finish() {
  printf '== all steps: %d s\n' "$SECONDS"
  printf '%s\n' "${_table[@]}"
  printf '%d passed, %d failed\n' "$_passed" "$_failed"
  exit $((_failed != 0))
}
