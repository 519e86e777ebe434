# shellcheck shell=bash
# common.sh: what the parts of `guest` share: messages, the cache folder, and what names a built kernel.
#
# The cache holds one folder for each finished set-up, `uml-KEY-VERSION` and `qemu-KEY-VERSION`. KEY is a hash of the files
# in this folder that decide what is built, so a changed kernel configuration asks for a new set-up; VERSION is the
# Debian package's. A folder is made under another name and renamed when it is complete: what has its final name is whole.

GUEST_DIR=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
GUEST_CACHE=${NVMF_GUEST_CACHE:-${XDG_CACHE_HOME:-${HOME:-/var/tmp}/.cache}/nvmf-guest}

say() { printf 'guest: %s\n' "$*" >&2; }
die() { say "$*"; exit 2; }

# guest_key KIND: a hash of the files that decide what a set-up of KIND (uml or qemu) builds.
guest_key() {
  local files
  case $1 in
    uml) files=(setup-uml.sh uml.config xstate.c) ;;
    qemu) files=(setup-qemu.sh qemu.modules init-qemu.sh) ;;
    *) die "no kind of guest is called '$1': it is uml or qemu" ;;
  esac
  (cd "$GUEST_DIR" && sha256sum "${files[@]}") | sha256sum | cut -c1-12
}

# guest_ready KIND: prints the newest finished set-up of KIND for this tree; fails if there is none.
guest_ready() {
  local found
  found=$(find "$GUEST_CACHE" -mindepth 1 -maxdepth 1 -type d -name "$1-$(guest_key "$1")-*" 2>/dev/null | sort -V | tail -n 1)
  [ -n "$found" ] && printf '%s\n' "$found"
}

# debian_version PACKAGE: the version that apt would install, empty if apt knows none.
debian_version() { apt-cache policy "$1" 2>/dev/null | awk '/Candidate:/ && $2 != "(none)" { print $2 }'; }
