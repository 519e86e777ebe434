#!/bin/bash
# msrv.sh: no dependency asks for a newer Rust than the `rust-version` that this project states. (That our own code does not is
# clippy's lint `incompatible_msrv`.)
set -euo pipefail
cd "$(dirname "$(readlink -f "$0")")/../.."

ours=$(sed -n 's/^rust-version = "\(.*\)"$/\1/p' Cargo.toml)
[[ $ours != *.*.* ]] && [ -n "$ours" ] && ours+=.0
[ -n "$ours" ] || { echo 'msrv: Cargo.toml states no rust-version' && exit 1; }
newer=$(cargo metadata --locked --format-version 1 --filter-platform x86_64-unknown-linux-gnu | jq -r '.packages[] | select(.rust_version) | "\(.rust_version) \(.name) \(.version)"' |
  while read -r theirs crate; do
    [ "$(printf '%s\n' "$ours" "$theirs" | sort -V | tail -n 1)" = "$ours" ] || echo "$crate needs Rust $theirs"
  done)
[ -z "$newer" ] || { printf 'this project states Rust %s, but:\n%s\n' "$ours" "$newer" && exit 1; }
echo "no dependency needs more than Rust $ours"
