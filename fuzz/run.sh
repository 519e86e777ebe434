#!/bin/bash
# run.sh TARGET SECONDS [libFuzzer options]   fuzz TARGET (decoder, controller, host) for so long
# run.sh all SECONDS                          every target, all at once; the last line is `N passed, N failed`
# run.sh TARGET FILE                          run one input again
# run.sh TARGET keep                          renew corpus/TARGET.hex from what was found
#
# Works on the stable toolchain: the coverage pass of LLVM is asked for with -C flags, so neither nightly nor cargo-fuzz is needed.
# Inputs that reach new code go to found/, inputs that break something to artifacts/; neither is kept in the repository. Add the
# latter as a line to regressions/TARGET.hex (xxd -p -c0 FILE): `cargo test -p nvme-proto --test fuzz_corpus` runs it from then on.
set -euo pipefail
readonly TARGETS=(decoder controller host)
# One input may take so long; real ones take microseconds.
readonly HANG_S=10
usage() {
  sed -n '2,/^#$/s/^# \{0,1\}//p' "$0" >&2
  exit 2
}
[ $# -ge 2 ] || usage
target=$1 what=$2
shift 2
# An input is named as the caller sees it.
[ ! -f "$what" ] || what=$(readlink -f "$what")
cd "$(dirname "$(readlink -f "$0")")"
[[ " ${TARGETS[*]} all " == *" $target "* ]] || usage

build() {
  local triple
  triple=$(rustc -vV | sed -n 's/^host: //p')
  # --target keeps the flags away from build scripts. Debug assertions are part of what is tested.
  RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C codegen-units=1 -C debug-assertions -C overflow-checks
    -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters
    -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --quiet --release --locked --target "$triple" "$@"
  programs=target/$triple/release
}
corpus() { cargo run --quiet --locked --bin corpus -- "$@"; }

# fuzz TARGET SECONDS [OPTIONS]
fuzz() {
  local target=$1 seconds=$2
  shift 2
  "$programs/$target" -max_total_time="$seconds" -timeout=$HANG_S -max_len=4096 -print_final_stats=1 \
    -artifact_prefix="artifacts/$target/" "$@" "found/$target"
}

# prepare TARGET: the kept corpus, where libFuzzer finds it.
prepare() {
  mkdir -p "found/$1" "artifacts/$1"
  corpus unpack "corpus/$1.hex" "found/$1"
}

# verdict TARGET SECONDS: fuzzes it and says how it went; the line begins with ok or FAILED.
verdict() {
  local log=found/$1.log executed
  if fuzz "$1" "$2" >"$log" 2>&1; then
    executed=$(sed -n 's/^stat::number_of_executed_units: *//p' "$log")
    # Not one input would mean that nothing was tested.
    if [ "${executed:-0}" -gt 0 ]; then echo "ok     $1: $executed inputs in $2 s" && return; fi
  fi
  printf 'FAILED %s:\n%s\n' "$1" "$(tail -n 40 "$log" | sed 's/^/  /')"
  sed -n "s|.*Test unit written to |  run it again: fuzz/run.sh $1 fuzz/|p" "$log"
  echo "  keep it: add its bytes as a line to fuzz/regressions/$1.hex (xxd -p -c0 FILE)"
}

if [ "$target" = all ]; then
  [[ $what =~ ^[0-9]+$ ]] || usage
  build "${TARGETS[@]/#/--bin=}"
  export programs
  for each in "${TARGETS[@]}"; do prepare "$each"; done
  export -f verdict fuzz
  export HANG_S
  said=$(printf '%s\n' "${TARGETS[@]}" | xargs -P "${#TARGETS[@]}" -I{} bash -c "verdict {} $what" | tee /dev/stderr)
  good=$(grep -c '^ok ' <<<"$said" || true)
  echo "$good passed, $((${#TARGETS[@]} - good)) failed"
  [ "$good" = ${#TARGETS[@]} ]
  exit
fi

build --bin "$target"
prepare "$target"
case $what in
keep)
  rm -rf "found/$target.kept"
  mkdir "found/$target.kept"
  "$programs/$target" -set_cover_merge=1 -max_len=512 "found/$target.kept" "found/$target"
  corpus pack "found/$target.kept" "corpus/$target.hex"
  ;;
*[!0-9]*) exec "$programs/$target" "$what" "$@" ;;
*) fuzz "$target" "$what" "$@" ;;
esac
