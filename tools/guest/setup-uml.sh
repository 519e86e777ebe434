#!/bin/bash
# setup-uml.sh: builds user-mode Linux from Debian's linux-source-6.12 with uml.config, and the xstate wrapper.
# About five minutes on two cores and 3 GB of disk meanwhile; 16 MB are kept. Called by `guest setup`.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

readonly SOURCE=linux-source-6.12
readonly DISK_NEEDED_KIB=$((3 * 1024 * 1024)) # the unpacked source is 1.7 GB, the objects 0.5 GB
readonly PROGRESS_S=30

# merge_config applies uml.config to the build in $1 and refuses a configuration that lost one of its lines.
merge_config() {
  local build=$1 line name lost=()
  make -s ARCH=um O="$build" tinyconfig
  scripts/kconfig/merge_config.sh -m -O "$build" "$build/.config" "$GUEST_DIR/uml.config" >/dev/null
  make -s ARCH=um O="$build" olddefconfig
  while read -r line; do
    case $line in
      CONFIG_*) grep -qxF -- "$line" "$build/.config" || lost+=("$line") ;;
      '# CONFIG_'*' is not set')
        name=${line#\# }
        if grep -q "^${name%% *}=" "$build/.config"; then lost+=("$line"); fi
        ;;
    esac
  done <"$GUEST_DIR/uml.config"
  if [ ${#lost[@]} != 0 ]; then
    die "uml: this kernel does not take these lines of uml.config (renamed, or a dependency is missing): ${lost[*]}"
  fi
}

# compile builds the kernel and says every half minute how far it is.
compile() {
  local build=$1 log=$2 pid
  make ARCH=um O="$build" -j"$(nproc)" linux >"$log" 2>&1 &
  pid=$!
  trap 'kill $pid 2>/dev/null || true' TERM INT
  while timeout "$PROGRESS_S" tail --pid="$pid" -f /dev/null; [ $? = 124 ]; do
    say "uml: $(grep -c '^  CC ' "$log" || true) files compiled of about 1600, $SECONDS s"
  done
  wait "$pid" || { tail -n 30 "$log" >&2; die "uml: the kernel did not build"; }
}

mkdir -p "$GUEST_CACHE"
exec {lock}>>"$GUEST_CACHE/uml.lock"
flock -n "$lock" || { say "uml: waiting for another set-up to end" && flock "$lock"; }

"$GUEST_DIR/../setup/apt.sh" uml
version=$(debian_version "$SOURCE")
if [ -z "$version" ]; then
  have=$(guest_ready uml) || die "uml: apt knows no $SOURCE (Debian 12 has it in its security archive): run 'apt-get update'"
  say "uml: apt knows no $SOURCE now; using ${have##*/}"
  exit 0
fi
final=$GUEST_CACHE/uml-$(guest_key uml)-$version
[ -d "$final" ] && { say "uml: ready in $final" && exit 0; }
free_kib=$(df --output=avail "$GUEST_CACHE" | tail -n 1)
[ "$free_kib" -ge "$DISK_NEEDED_KIB" ] || die "uml: $GUEST_CACHE has $((free_kib / 1024)) MiB free, the build needs 3 GiB; NVMF_GUEST_CACHE names another folder"

rm -rf "$GUEST_CACHE"/tmp.uml.* # left by a set-up that was killed: we hold the lock, nobody uses it
work=$(mktemp -d "$GUEST_CACHE/tmp.uml.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/source" "$work/build" "$work/final"

say "uml: fetching $SOURCE $version (about 150 MB; unpacked in the cache folder, not installed)"
(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$SOURCE=$version")
dpkg-deb --fsys-tarfile "$work"/linux-source-*.deb | tar -xO "./usr/src/$SOURCE.tar.xz" | tar -xJ -C "$work/source" --strip-components=1
say "uml: building the kernel ($SECONDS s so far)"
cd "$work/source"
merge_config "$work/build"
compile "$work/build" "$work/build.log"

cp "$work/build/linux" "$work/final/linux"
cp "$work/build/.config" "$work/final/config"
cc -O2 -Wall -shared -fPIC -o "$work/final/xstate.so" "$GUEST_DIR/xstate.c" -ldl
mv "$work/final" "$final"
say "uml: built in $SECONDS s: $final"
