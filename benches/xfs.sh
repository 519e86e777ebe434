# xfs.sh - sourced by pool.sh and volumes.sh: an XFS with reflinks on a loop device, below $work.
# shellcheck shell=bash disable=SC2154 # work is the caller's

# mount_xfs SIZE: at $work/mnt.
mount_xfs() {
  truncate -s "$1" "$work/image"
  mkfs.xfs -q -f -m reflink=1 "$work/image"
  mkdir "$work/mnt"
  mount -o loop "$work/image" "$work/mnt"
}

# The kernel ends the rings of a process, and lets go of their files, a moment after the process.
unmount_xfs() {
  for _ in $(seq 100); do
    ! mountpoint -q "$work/mnt" || umount -q "$work/mnt" 2>/dev/null || { sleep 0.05; continue; }
    break
  done
}
