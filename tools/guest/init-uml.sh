#!/bin/bash
# init-uml.sh: the first process of a user-mode Linux guest. Its / is the host's, read-only (hostfs); it puts a layer in memory
# over it, makes that the root, and goes on with init.sh. The kernel passes guest_job (a folder) in the environment.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
mount -t proc proc /proc
# shellcheck source=/dev/null disable=SC2154
. "$guest_job/job"

new=/run/new
mount -t tmpfs -o size=80% layer /run
mkdir /run/upper /run/work $new
mount -t overlay -o lowerdir=/,upperdir=/run/upper,workdir=/run/work overlay $new
mkdir -p $new/out
mount -t hostfs -o "$GUEST_OUT" out $new/out
umount /proc
cd $new || exit
mount --move . /
exec chroot . /bin/bash "$guest_job/init.sh" "$guest_job"
