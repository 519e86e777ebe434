#!/bin/bash
# setup-qemu.sh: makes what the QEMU guest boots from: Debian's 6.12 kernel package, unpacked and not installed, reduced to
# the modules in qemu.modules; the kernel uncompressed, and an initial RAM disk. Seconds, 110 MB fetched. Called by `guest setup`.
set -euo pipefail
. "$(dirname "$(readlink -f "$0")")/common.sh"

# u32 FILE OFFSET: the little-endian number there.
u32() { od -An -tu4 -j"$2" -N4 "$1" | tr -d ' '; }

# unpack_kernel BZIMAGE VMLINUX: QEMU boots an uncompressed kernel directly (PVH), which spares the emulated processor the
# decompression: three seconds of each boot. The offsets are those of the x86 boot protocol's header; the last four bytes of the
# payload are its size when unpacked.
unpack_kernel() {
  local sectors start length
  sectors=$(od -An -tu1 -j$((0x1f1)) -N1 "$1" | tr -d ' ')
  start=$(((sectors + 1) * 512 + $(u32 "$1" $((0x248)))))
  length=$(u32 "$1" $((0x24c)))
  dd if="$1" bs=1M iflag=skip_bytes,count_bytes skip="$start" count=$((length - 4)) status=none | zstd -dcq >"$2" || die "qemu: the kernel in $1 is not compressed by zstd"
  [ "$(head -c 4 "$2")" = $'\x7fELF' ] || die "qemu: no kernel image found in $1"
}

# insmods MODULE: the files to insert for MODULE, in order.
insmods() {
  local lines
  lines=$(modprobe -d "$work/package" -S "$kernel" --show-depends "$1") || die "qemu: $image has no module $1"
  awk '$1 == "insmod" { print $2 }' <<<"$lines"
}

mkdir -p "$GUEST_CACHE"
exec {lock}>>"$GUEST_CACHE/qemu.lock"
flock -n "$lock" || { say "qemu: waiting for another set-up to end" && flock "$lock"; }

"$GUEST_DIR/../setup/apt.sh" qemu
image=$(apt-cache search --names-only '^linux-image-6\.12\.[0-9]+\+deb12-amd64-unsigned$' | awk '{ print $1 }' | sort -V | tail -n 1)
if [ -z "$image" ]; then
  have=$(guest_ready qemu) || die "qemu: apt knows no linux-image-6.12 (Debian 12 has it in its security archive): run 'apt-get update'"
  say "qemu: apt knows no linux-image-6.12 now; using ${have##*/}"
  exit 0
fi
version=$(debian_version "$image")
final=$GUEST_CACHE/qemu-$(guest_key qemu)-$version
[ -d "$final" ] && { say "qemu: ready in $final" && exit 0; }

rm -rf "$GUEST_CACHE"/tmp.qemu.* # left by a set-up that was killed: we hold the lock, nobody uses it
work=$(mktemp -d "$GUEST_CACHE/tmp.qemu.XXXXXX")
trap 'rm -rf "$work"' EXIT
mkdir "$work/package" "$work/final" "$work/initrd" "$work"/initrd/{bin,boot,proc,sys,dev,lower,upper,new}

say "qemu: fetching $image (about 110 MB; unpacked in the cache folder, not installed)"
(cd "$work" && apt-get download -qq -o APT::Sandbox::User=root "$image=$version")
dpkg-deb -x "$work"/linux-image-*.deb "$work/package"
kernel=$(ls "$work/package/lib/modules")
depmod -b "$work/package" "$kernel"
unpack_kernel "$work/package/boot/vmlinuz-$kernel" "$work/final/vmlinux"

target=$work/final/lib/modules/$kernel
mkdir -p "$target"
cp "$work/package/lib/modules/$kernel"/modules.{builtin,builtin.modinfo,order} "$target"
order=100 # the initial RAM disk inserts its modules in the order of their names
while read -r first second; do
  case $first in '' | '#'*) continue ;; esac
  for file in $(insmods "${second:-$first}"); do
    plain=${file#"$work/package/lib/modules/$kernel/"}
    plain=${plain%.xz}
    if [ ! -e "$target/$plain" ]; then
      mkdir -p "$(dirname "$target/$plain")"
      # Not compressed: the emulated processor would take a second for each of the large ones.
      xz -dc "$file" >"$target/$plain"
      [ "$first" != boot ] || cp "$target/$plain" "$work/initrd/boot/$((order++))-$(basename "$plain")"
    fi
  done
done <"$GUEST_DIR/qemu.modules"
depmod -b "$work/final" "$kernel"

cp "$(command -v busybox)" "$work/initrd/bin/busybox"
ln -s busybox "$work/initrd/bin/sh"
install -m 755 "$GUEST_DIR/init-qemu.sh" "$work/initrd/init"
(cd "$work/initrd" && find . | cpio -o -H newc --quiet) >"$work/final/initrd"
mv "$work/final" "$final"
say "qemu: kernel $kernel ready in $SECONDS s: $final"
