#!/bin/bash
# library.sh: shows that a suite cannot pass by mistake: what lib.sh and suites.sh make of suites that fail in every way there is.
# guest: host
# shellcheck disable=SC2016 # what is in single quotes is a suite's
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite library

# judged SUM CODE SAYS LINE...: a suite with these lines ends with SUM and CODE, and its output matches SAYS.
judged() {
  local sum=$1 code=$2 says=$3 dir got=0
  shift 3
  dir=$(mktemp -d "$SUITE_TMP/judged.XXXXXX")
  printf '%s\n' '. "$GUEST_LIB"' 'suite judged' "$@" >"$dir/suite.sh"
  SUITE_OUT=$dir CHECK_TIMEOUT_S=1 bash "$dir/suite.sh" >"$dir/said" 2>&1 || got=$?
  cat "$dir/said"
  expect 'last line' "$sum" "$(tail -n 1 "$dir/said")"
  expect 'exit code' "$code" "$got"
  grep -qE -- "$says" "$dir/said"
}

check 'what succeeds passes' judged '2 passed, 0 failed' 0 '^ok +two' 'check one true' 'check two test 1 = 1'
check 'what fails fails' judged '1 passed, 1 failed' 1 '^FAILED one .*exit code 1' 'check one false' 'check two true'
check 'a function fails at its first failure' judged '0 passed, 1 failed' 1 'exit code 1' 'f() { false; echo late; }' 'check one f'
check 'an unset variable fails' judged '0 passed, 1 failed' 1 'unbound variable' 'f() { echo "$nothing"; }' 'check one f'
check 'a check in a condition fails' judged '0 passed, 1 failed' 1 'stands in a condition' 'check one true || true'
check 'what hangs fails' judged '1 passed, 1 failed' 1 'not done in 1 s' 'check one sleep 1000' 'check two true'
check 'an exit code of 124 is not a hang' judged '0 passed, 1 failed' 1 'exit code 124' 'f() { return 124; }' 'check one f'
check 'the output of a failure is shown' judged '0 passed, 1 failed' 1 '^ +\| the reason$' 'f() { echo the reason; false; }' 'check one f'
check 'and the logs of daemons' judged '1 passed, 1 failed' 1 '^ +\| of the daemon$' \
  'f() { start d sh -c "echo of the daemon; exec sleep 1000"; wait_until 5 test -s "$SUITE_OUT/d.log"; }' 'check one f' 'check two false'
check 'a refusal for the named reason passes' judged '1 passed, 0 failed' 0 '^ok' 'refuse one "No such file" cat /nowhere'
check 'a refusal for another reason fails' judged '0 passed, 1 failed' 1 'but not with: Bad' 'refuse one Bad cat /nowhere'
check 'what should be refused and is not fails' judged '0 passed, 1 failed' 1 'it was accepted' 'refuse one any true'
check 'what waits in vain fails' judged '0 passed, 1 failed' 1 'waited in vain for: cat /nowhere' 'CHECK_TIMEOUT_S=5' 'check one wait_until 1 cat /nowhere'
check 'what is unequal fails' judged '0 passed, 1 failed' 1 'a number: expected "1", got "2"' 'check one expect "a number" 1 2'
check 'a suite that ends early fails' judged '1 passed, 1 failed' 1 'ended early' 'check one true' 'exit 3'
check 'a suite without checks fails' judged '0 passed, 1 failed' 1 'checked nothing' ':'

killed() {
  judged '1 passed, 0 failed' 0 '^ok' 'f() { start d sleep 1000; pid d >"$SUITE_OUT/pid"; }' 'check one f'
  wait_until 5 _gone "$(cat "$SUITE_TMP"/judged.*/pid)"
}
check 'a daemon does not outlive its suite' killed

# summed PASSED FAILED CODE LINE...: what suites.sh makes of a suite that is no more than these lines.
summed() {
  local want="$1 passed, $2 failed" code=$3 dir got=0
  shift 3
  dir=$(mktemp -d "$SUITE_TMP/summed.XXXXXX")
  mkdir -p "$dir/tools" "$dir/tests/guest"
  cp -r tools/guest "$dir/tools"
  printf '%s\n' '# guest: host' "$@" >"$dir/tests/guest/one.sh"
  CARGO_TARGET_DIR=$dir/target "$dir/tools/guest/suites.sh" >"$dir/said" 2>&1 || got=$?
  cat "$dir/said"
  expect 'last line' "$want" "$(tail -n 1 "$dir/said")"
  expect 'exit code' "$code" "$got"
}
check 'a suite is summed' summed 3 0 0 'echo 3 passed, 0 failed'
check 'a failed suite is summed' summed 2 1 1 'echo 2 passed, 1 failed' 'exit 1'
check 'a suite without a sum is a failure' summed 0 1 1 'echo all fine'
check 'a sum of nothing is a failure' summed 0 1 1 'echo 0 passed, 0 failed'
check 'a good sum with a bad exit code is a failure' summed 2 1 1 'echo 2 passed, 0 failed' 'exit 9'
