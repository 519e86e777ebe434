#!/bin/sh
# run.sh TARGET SECONDS [libFuzzer options]   fuzz TARGET (decoder, controller, host) for so long
# run.sh all SECONDS                          each target in turn
# run.sh TARGET FILE                          run one input again
# run.sh TARGET keep                          renew corpus/TARGET.hex from what was found
#
# Works on the stable toolchain: the coverage pass of LLVM is asked for with -C flags, so neither nightly nor cargo-fuzz is needed.
# Inputs that reach new code go to found/, inputs that break something to artifacts/; neither is kept in the repository. Add the
# latter as a line to regressions/TARGET.hex (xxd -p -c0 FILE): `cargo test -p nvme-proto --test fuzz_corpus` runs it from then on.
set -eu
cd "$(dirname "$0")"
target=$1 what=$2
shift 2
if [ "$target" = all ]; then
    for each in decoder controller host; do ./run.sh "$each" "$what" "$@"; done
    exit
fi

triple=$(rustc -vV | sed -n 's/^host: //p')
# --target keeps the flags away from build scripts. Debug assertions are part of what is tested.
RUSTFLAGS="--cfg fuzzing -C passes=sancov-module -C codegen-units=1 -C debug-assertions -C overflow-checks
 -C llvm-args=-sanitizer-coverage-level=4 -C llvm-args=-sanitizer-coverage-inline-8bit-counters
 -C llvm-args=-sanitizer-coverage-pc-table -C llvm-args=-sanitizer-coverage-trace-compares" \
    cargo build --quiet --release --target "$triple" --bin "$target"
program=target/$triple/release/$target
corpus() { cargo run --quiet --bin corpus -- "$@"; }

found=found/$target
mkdir -p "$found" "artifacts/$target"
corpus unpack "corpus/$target.hex" "$found"
case $what in
keep)
    rm -rf "$found.kept"
    mkdir "$found.kept"
    "$program" -set_cover_merge=1 -max_len=512 "$found.kept" "$found"
    corpus pack "$found.kept" "corpus/$target.hex"
    ;;
*[!0-9]*) exec "$program" "$what" "$@" ;;
*)
    exec "$program" -max_total_time="$what" -max_len=4096 -print_final_stats=1 -artifact_prefix="artifacts/$target/" "$@" "$found"
    ;;
esac
