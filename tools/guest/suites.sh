#!/bin/bash
# suites.sh [NAME[.KIND]...]: runs the suites in tests/guest (all, or those named, or only their runs of one kind), and sums what they found.
#
# A suite is tests/guest/NAME.sh. Each line `# guest: OPTIONS` among its first lines is one run of it: in a guest, with
# these options of `guest run`, or on this machine if the line is `# guest: host`. A line `# soak guest: OPTIONS` is one more
# run where NVMF_SOAK is set, or its kind is named. A run that does not end with its line `N passed, N failed`, or whose exit code does not fit it,
# counts as one failure more. What a run left in /out, and its output, are kept in target/guest/NAME.KIND. The programs
# under test come from $NVMF_BIN, by default target/release.
#
# A guest of user-mode Linux has one processor: as many of them run at once as this machine has processors ($LANES, if set),
# and each shows its output when it has ended. All other runs have the machine to themselves.
set -uo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.." || exit
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")
export NVMF_BIN=${NVMF_BIN:-$target/${PROFILE:-release}}
results=$target/guest
lanes=${LANES:-$(nproc)}

# run_one NAME KIND OPTIONS...: leaves its line of the table in DIR/row, which begins with the two counts.
run_one() {
  local name=$1 kind=$2 dir=$results/$1.$2 begin=$SECONDS status sum good=0 bad=0 remark=''
  shift 2
  printf '== suite %s (%s)\n' "$name" "$kind"
  if [ "$kind" = host ]; then
    GUEST_KIND=host GUEST_LIB=$PWD/tools/guest/lib.sh SUITE_OUT=$dir PATH=$NVMF_BIN:$PATH bash "tests/guest/$name.sh" </dev/null
  else
    tools/guest/guest run --out "$dir" "$@" "tests/guest/$name.sh" </dev/null
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
  printf '%d %d %-6s %-32s %4d s  %3d passed, %d failed  %s\n' "$good" "$bad" "$([ "$bad" = 0 ] && echo ok || echo FAILED)" \
    "$name ($kind)" $((SECONDS - begin)) "$good" "$bad" "$remark" >"$dir/row"
}

# in_lane NAME KIND OPTIONS...: run_one, whose output comes in one piece.
in_lane() {
  local dir=$results/$1.$2
  run_one "$@" >"$dir/lane.log"
  flock "$results" cat "$dir/lane.log"
  rm "$dir/lane.log"
}

names=("$@")
if [ $# = 0 ]; then
  for file in tests/guest/*.sh; do name=${file##*/} && names+=("${name%.sh}"); done
fi
in_lanes=() alone=() dirs=()
for name in "${names[@]}"; do
  only='' chosen=0
  case $name in *.uml | *.qemu | *.host) only=${name##*.} name=${name%.*} ;; esac
  [ -r "tests/guest/$name.sh" ] || { echo "suites: there is no suite $name: tests/guest has $(cd tests/guest && echo *.sh)" >&2 && exit 2; }
  soak=${NVMF_SOAK:-$only}
  mapfile -t runs < <(sed -nE "1,20s/^# ${soak:+(soak )?}guest: *//p" "tests/guest/$name.sh")
  [ ${#runs[@]} != 0 ] || { echo "suites: tests/guest/$name.sh has no '# guest:' line" >&2 && exit 2; }
  for run in "${runs[@]}"; do
    case " $run " in
      *' host '*) kind=host ;;
      *' --qemu '*) kind=qemu ;;
      *) kind=uml ;;
    esac
    [ "${only:-$kind}" = $kind ] || continue
    chosen=$((chosen + 1))
    case $kind in
      host) alone+=("$name host") ;;
      qemu) alone+=("$name qemu $run") ;;
      uml) in_lanes+=("$name uml $run") ;;
    esac
    dirs+=("$results/$name.$kind")
    rm -rf "$results/$name.$kind" && mkdir -p "$results/$name.$kind" || exit
  done
  [ $chosen != 0 ] || { echo "suites: $name has no run of the kind $only" >&2 && exit 2; }
done

# One alone need not wait for its end to be seen.
[ ${#in_lanes[@]} -gt 1 ] || { alone+=("${in_lanes[@]}") && in_lanes=(); }
for run in "${in_lanes[@]}"; do
  while [ "$(jobs -rp | wc -l)" -ge "$lanes" ]; do wait -n; done
  read -ra words <<<"$run"
  in_lane "${words[@]}" &
done
wait
for run in "${alone[@]}"; do
  read -ra words <<<"$run"
  run_one "${words[@]}"
done

passed=0 failed=0 table=()
for dir in "${dirs[@]}"; do
  [ -r "$dir/row" ] || echo "0 1 FAILED ${dir##*/}: was ended from outside" >"$dir/row"
  read -r good bad row <"$dir/row"
  passed=$((passed + good)) failed=$((failed + bad)) table+=("$row")
done
printf '== all suites\n'
printf '%s\n' "${table[@]}"
printf '%d passed, %d failed\n' "$passed" "$failed"
[ "$failed" = 0 ]
