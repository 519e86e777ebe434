#!/bin/bash
# self.sh: shows that the guests and lib.sh do what other suites build on, with the Linux kernel on both sides.
# guest: --uml --timeout 900
# guest: --qemu --cpus 2 --nvme 64M --nvme 64M:logical_block_size=4096,physical_block_size=4096 --disk 32M --timeout 1200
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite self

NQN=nqn.2024-01.org.example:guest-self
QUICK=(--size=16M)
[ "$GUEST_KIND" = uml ] || QUICK=(--size=2M) # emulation takes a second for each MiB

target() {
  nvmet_subsystem $NQN
  nvmet_namespace $NQN 1 "$(scratch_disk 320M)"
  truncate -s 64M /dev/shm/backing
  nvmet_namespace $NQN 7 /dev/shm/backing
  nvmet_port 1 tcp 127.0.0.1 4420
  nvmet_link 1 $NQN
}
check 'a kernel target with a disk and a file' target
discovered() { nvme discover -t tcp -a 127.0.0.1 -s 4420 | grep -q "subnqn: *$NQN\$"; }
check 'discover' discovered
refuse 'connect to a subsystem that is not there' 'write to /dev/nvme-fabrics: Input/output error' nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN-no

# attach [CONNECT-ARGS]: connects, and waits for both namespaces.
attach() {
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN "$@"
  wait_until 20 ns_dev $NQN 1
  wait_until 20 ns_dev $NQN 7
}
detach() {
  nvme disconnect -n $NQN
  wait_until 20 detached
}
detached() { ! ctrl_dev $NQN; }
verify() {
  local disk
  disk=$(ns_dev $NQN "$1")
  fio_verify "$disk" "${QUICK[@]}"
}
sizes() {
  expect 'bytes of namespace 1' $((320 << 20)) "$(blockdev --getsize64 "$(ns_dev $NQN 1)")"
  expect 'bytes of namespace 7' $((64 << 20)) "$(blockdev --getsize64 "$(ns_dev $NQN 7)")"
}
# on_fs TYPE: a fresh file system on namespace 1, and fio on a file of it.
on_fs() {
  local disk
  disk=$(ns_dev $NQN 1)
  wipefs -aq "$disk"
  "mkfs.$1" -q "$disk"
  mkdir -p /mnt/fs
  mount "$disk" /mnt/fs
  fio_verify /mnt/fs/file "${QUICK[@]}" --bs=64k
  umount /mnt/fs
}

check 'connect' attach
check 'both namespaces are found by their NSID' sizes
check 'fio verifies namespace 1' verify 1
check 'fio verifies namespace 7' verify 7
check 'ext4' on_fs ext4
check 'xfs' on_fs xfs
check 'disconnect' detach
check 'connect with header and data digests' attach -g -G -i 1
check 'fio verifies under digests' verify 1
vanish() {
  nvmet_enable $NQN 7 0
  wait_until 20 absent
  nvmet_enable $NQN 7 1
  wait_until 20 ns_dev $NQN 7
}
absent() { ! ns_dev $NQN 7; }
check 'a namespace goes and comes back' vanish
check 'disconnect again' detach
allowed() {
  nvmet_allow $NQN nqn.2024-01.org.example:friend
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -q nqn.2024-01.org.example:friend
  detach
}
check 'a host that is allowed' allowed
refuse 'a host that is not' 'write to /dev/nvme-fabrics: Input/output error' nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -q nqn.2024-01.org.example:stranger
two_hosts() {
  ip netns add other
  ip link add here type veth peer name there netns other
  ip address add 10.97.0.1/24 dev here
  ip link set here up
  ip -n other address add 10.97.0.2/24 dev there
  ip -n other link set there up
  nvmet_port 2 tcp 10.97.0.1 4420
  nvmet_link 2 $NQN
  wait_until 20 ip netns exec other nvme discover -t tcp -a 10.97.0.1 -s 4420
  ip netns delete other
}
check 'discover from another host, in a network namespace' two_hosts
friend_with_key() {
  local key
  key=$(nvme gen-dhchap-key --hmac=1 -n nqn.2024-01.org.example:friend)
  echo "$key" >"$NVMET/hosts/nqn.2024-01.org.example:friend/dhchap_key"
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -q nqn.2024-01.org.example:friend && return 1
  nvme connect -t tcp -a 127.0.0.1 -s 4420 -n $NQN -q nqn.2024-01.org.example:friend -S "$key"
  detach
}
over_rdma() {
  ip link set dummy0 up
  ip address add 10.96.0.1/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
  nvmet_port 3 rdma 10.96.0.1 4420
  nvmet_link 3 $NQN
  nvme connect -t rdma -a 10.96.0.1 -s 4420 -n $NQN -q nqn.2024-01.org.example:friend
  wait_until 20 ns_dev $NQN 1
  verify 1
  detach
}
if [ "$GUEST_KIND" = uml ]; then # QEMU can do both, in its own time
  check 'RDMA in software' over_rdma
  check 'a host must show its key' friend_with_key
fi
check 'everything is removed' nvmet_clear

reflinks() {
  scratch_fs "$1" 320M "/mnt/$1"
  head -c 1M /dev/urandom >"/mnt/$1/a"
  cp --reflink=always "/mnt/$1/a" "/mnt/$1/b"
  cmp "/mnt/$1/a" "/mnt/$1/b"
  umount "/mnt/$1"
}
check 'xfs shares blocks' reflinks xfs
check 'btrfs shares blocks' reflinks btrfs

nodes() {
  for node in /dev/fuse /dev/loop-control /dev/ublk-control /dev/nbd0 /dev/mapper/control; do
    wait_until 10 test -c $node -o -b $node
  done
}
check 'fuse, loop, ublk, nbd and device mapper are there' nodes
failing_disk() {
  local disk
  disk=$(scratch_disk 16M)
  printf '%s\n' "0 64 linear $disk 0" "64 64 error" "128 32640 flakey $disk 128 60 0" | dmsetup create failing
  dd if=/dev/mapper/failing of=/dev/null bs=32k count=1 iflag=direct
  dd if=/dev/mapper/failing of=/dev/null bs=32k skip=1 count=1 iflag=direct && return 1
  dmsetup remove failing
}
check 'a disk that fails where it is told to' failing_disk
if [ "$GUEST_KIND" = qemu ]; then
  emulated() {
    wait_until 30 local_nvme "$1"
    expect "block size of controller $1" "$2" "$(blockdev --getss "$(local_nvme "$1")n1")"
    [ -c "$(local_nvme "$1" | sed 's|/nvme|/ng|')n1" ]
    fio_verify "$(local_nvme "$1")n1" --size=1M
  }
  check 'emulated NVMe with 512 byte blocks' emulated 0 512
  check 'emulated NVMe with 4096 byte blocks' emulated 1 4096
  plain_disk() { fio_verify "$GUEST_DISKS" --size=1M; }
  check 'a plain disk' plain_disk
  two_processors() { expect processors 2 "$(nproc)"; }
  check 'two processors' two_processors
fi
