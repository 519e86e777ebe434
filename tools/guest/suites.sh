#!/bin/bash
# suites.sh [NAME...]: runs the suites in tests/guest (all, or those named) one after another, and sums what they found.
#
# A suite is tests/guest/NAME.sh. Each line `# guest: OPTIONS` among its first lines is one run of it: in a guest, with
# these options of `guest run`, or on this machine if the line is `# guest: host`. A run that does not end with its line
# `N passed, N failed`, or whose exit code does not fit it, counts as one failure more. What a run left in /out, and its
# output, are kept in target/guest/NAME.KIND. The programs under test come from $NVMF_BIN, by default target/release.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export NVMF_BIN=${NVMF_BIN:-$target/${PROFILE:-release}}
results=$target/guest
passed=0 failed=0 table=()

# run_one NAME KIND OPTIONS...
run_one() {
  local name=$1 kind=$2 dir=$results/$1.$2 begin=$SECONDS status sum good=0 bad=0 remark=''
  shift 2
  rm -rf "$dir" && mkdir -p "$dir" || exit
  printf '== suite %s (%s)\n' "$name" "$kind"
  if [ "$kind" = host ]; then
    GUEST_KIND=host GUEST_LIB=$PWD/tools/guest/lib.sh SUITE_OUT=$dir PATH=$NVMF_BIN:$PATH bash "tests/guest/$name.sh" </dev/null
  else
    tools/guest/guest run --out "$dir" "$@" "tests/guest/$name.sh"
  fi 2>&1 | tee "$dir/output.log"
  status=${PIPESTATUS[0]}

  sum=$(grep -E '^[0-9]+ passed, [0-9]+ failed$' "$dir/output.log" | tail -n 1)
  [ -z "$sum" ] || read -r good _ bad _ <<<"$sum"
  if [ -z "$sum" ]; then
    remark="ended without a sum (exit code $status)" bad=1
  elif [ "$good" = 0 ] && [ "$bad" = 0 ]; then
    remark='checked nothing' bad=1
  elif [ "$status" != $((bad != 0)) ]; then
    remark="exit code $status does not fit" bad=$((bad + 1))
  fi
  passed=$((passed + good)) failed=$((failed + bad))
  table+=("$(printf '%-6s %-32s %4d s  %3d passed, %d failed  %s' "$([ "$bad" = 0 ] && echo ok || echo FAILED)" "$name ($kind)" $((SECONDS - begin)) "$good" "$bad" "$remark")")
}

names=("$@")
if [ $# = 0 ]; then
  for file in tests/guest/*.sh; do name=${file##*/} && names+=("${name%.sh}"); done
fi
for name in "${names[@]}"; do
  [ -r "tests/guest/$name.sh" ] || { echo "suites: there is no suite $name: tests/guest has $(cd tests/guest && echo *.sh)" >&2 && exit 2; }
  mapfile -t runs < <(sed -n '1,20s/^# guest: *//p' "tests/guest/$name.sh")
  [ ${#runs[@]} != 0 ] || { echo "suites: tests/guest/$name.sh has no '# guest:' line" >&2 && exit 2; }
  for run in "${runs[@]}"; do
    read -ra options <<<"$run"
    case " $run " in
      *' host '*) run_one "$name" host ;;
      *' --qemu '*) run_one "$name" qemu "${options[@]}" ;;
      *) run_one "$name" uml "${options[@]}" ;;
    esac
  done
done
printf '== all suites\n'
printf '%s\n' "${table[@]}"
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
