#!/bin/bash
# apt.sh [GROUP...]: installs by apt what this project's build and tests need and the machine lacks, and says what and why.
# Without a GROUP: all of them. Does nothing, quickly, when nothing is missing. Needs Debian 12 (or a system with the same
# package names), and root or sudo only if something is missing.
set -euo pipefail

# group  package            reason
packages() {
  cat <<'LIST'
build    gcc                links Rust programs; compiles the guest's kernel
build    libc6-dev          headers and start-up objects for gcc
build    make               runs the Makefile and the kernel's
fuzz     g++                compiles libFuzzer
count    valgrind           counts the instructions of the hot path
check    shellcheck         reads our shell scripts for mistakes
check    libibverbs-dev     headers that our declarations of RDMA structures are compared with
check    librdmacm-dev      the same, for the connection manager
check    git                lists the files that the tidiness checks read
check    e2fsprogs          ext4 for unit tests, as root
check    xfsprogs           XFS for unit tests of pools, as root
check    btrfs-progs        btrfs for unit tests of pools, as root
check    qemu-utils         qemu-io and qemu-img, clients of our NBD server that are not ours
check    libnbd-bin         nbdinfo and nbdcopy, other ones
check    iproute2           networks of tests in which a volume moves between nodes
check    python3            reads the manifests in docs/deploy
check    python3-yaml       parses them
uml      flex               generates the lexer of the kernel's configuration language
uml      bison              generates its parser
uml      bc                 computes constants in the kernel's build
uml      xz-utils           unpacks the kernel's source
qemu     qemu-system-x86    the emulated machine
qemu     busybox-static     the first programs in the guest, before it has a root
qemu     cpio               packs them
qemu     kmod               resolves and loads the kernel's modules
qemu     zstd               unpacks the kernel
qemu     xz-utils           unpacks its modules
guest    iproute2           sets up the guest's network
guest    ethtool            turns off what the guest's network card does badly
guest    kmod               loads modules in the QEMU guest
guest    procps             process tools for suites
guest    util-linux         losetup, mount, blkdiscard
guest    nvme-cli           drives Linux's own NVMe host, the peer of our target
guest    librdmacm1         RDMA connections
guest    ibverbs-providers  RDMA devices, soft RoCE among them
guest    fio                load with verification
guest    e2fsprogs          ext4
guest    xfsprogs           XFS, with reflinks
guest    btrfs-progs        btrfs, with reflinks
guest    dmsetup            device mapper: disks that fail, delay or record
guest    nbd-client         the kernel's NBD
guest    fuse3              fusermount, for FUSE without root
guest    jq                 reads JSON output
guest    python3            replays what dm-log-writes recorded, in tests of power cuts
guest    strace             shows the system calls that reach a file
guest    curl               asks the Docker plugin as dockerd does, and the CSI driver by gRPC
guest    docker.io          runs containers on volumes; its service is not started
guest    busybox-static     all that such a container needs
guest    openssl            makes certificates and speaks TLS with code that is not ours
guest    tshark             reads captures with an NVMe/TCP dissector that is not ours
LIST
}

missing=() seen=' '
while read -r group package reason; do
  [ $# = 0 ] || [[ " $* " == *" $group "* ]] || continue
  [[ $seen != *" $package "* ]] || continue
  seen+="$package "
  dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q '^install ok' && continue
  [ ${#missing[@]} != 0 ] || echo "apt: missing on this machine:" >&2
  printf 'apt:   %-16s %s\n' "$package" "$reason" >&2
  missing+=("$package")
done < <(packages)
[ ${#missing[@]} != 0 ] || exit 0

if ! command -v apt-get >/dev/null; then
  echo "apt: this system has no apt-get: install what is listed above by its own means" >&2
  exit 1
fi
root=()
if [ "$(id -u)" != 0 ]; then
  command -v sudo >/dev/null || { echo "apt: run as root: apt-get install ${missing[*]}" >&2 && exit 1; }
  root=(sudo)
fi
apt() { "${root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq -o DPkg::Lock::Timeout=300 "$@" >/dev/null </dev/null; }
# Debian starts the services that it installs, unless this says no. Tests start what they need themselves.
policy=/usr/sbin/policy-rc.d
if [[ " ${missing[*]} " == *' docker.io '* ]] && [ ! -e $policy ]; then
  trap '"${root[@]}" rm -f $policy' EXIT
  printf '#!/bin/sh\nexit 101\n' | "${root[@]}" tee $policy >/dev/null
  "${root[@]}" chmod 755 $policy
fi
apt update
apt install -y --no-install-recommends "${missing[@]}"
echo "apt: installed ${missing[*]}" >&2
