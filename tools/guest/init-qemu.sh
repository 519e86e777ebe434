#!/bin/sh
# init-qemu.sh: /init of the QEMU guest's initial RAM disk (busybox): mounts the host's / over 9p, read-only, puts a layer in
# memory over it, makes that the root, and goes on with init.sh. The kernel passes guest_job (a folder of the host) in the environment.
# shellcheck disable=SC2154 # guest_job comes from the kernel
busybox=/bin/busybox
nine=trans=virtio,version=9p2000.L,msize=512000

$busybox mount -t proc proc /proc
for module in /boot/*; do $busybox insmod "$module" || echo "init: cannot insert $module"; done
$busybox mount -t 9p -o ro,cache=loose,$nine hostroot /lower
$busybox mount -t tmpfs -o size=80% layer /upper
$busybox mkdir /upper/upper /upper/work
$busybox mount -t overlay -o lowerdir=/lower,upperdir=/upper/upper,workdir=/upper/work overlay /new
$busybox mkdir -p /new/out
$busybox mount -t 9p -o rw,cache=none,$nine out /new/out
$busybox umount /proc
exec $busybox switch_root /new /bin/bash "$guest_job/init.sh" "$guest_job"
