#!/bin/bash
# run-qemu.sh DISK... -- NVME...: starts QEMU for run.sh. JOB, OUT, SETUP, CPUS, MEM_MIB, TIMEOUT_S and TAP come in the
# environment. Standard output is the script's; what the kernel says goes to OUT/console.log. Exit: 124 when the time was up.
#
# Always emulated (TCG), never KVM: a machine that has KVM would otherwise test something else than one that has not.
set -euo pipefail

arguments=(
  -accel "tcg,thread=multi,tb-size=512" -cpu max -smp "$CPUS" -m "${MEM_MIB:-2048}"
  -nodefaults -no-user-config -no-reboot -display none -monitor none
  -kernel "$SETUP/vmlinux" -initrd "$SETUP/initrd"
  # One printk.devkmsg line could hide a panic's: all that the kernel says goes to the log.
  -append "console=ttyS0 panic=-1 net.ifnames=0 sysctl.kernel.hung_task_timeout_secs=60 guest_job=$JOB"
  -serial "file:$OUT/console.log"
  -device virtio-serial-pci -chardev "file,id=script,path=/dev/fd/3,append=on" -device "virtconsole,chardev=script"
  -fsdev "local,id=root,path=/,security_model=none,readonly=on,multidevs=remap" -device "virtio-9p-pci,fsdev=root,mount_tag=hostroot"
  -fsdev "local,id=out,path=$OUT,security_model=none" -device "virtio-9p-pci,fsdev=out,mount_tag=out"
  -netdev "user,id=user" -device "virtio-net-pci,netdev=user,romfile="
  -device virtio-rng-pci
)
n=0 kind=disk
for disk in "$@"; do
  if [ "$disk" = -- ]; then kind=nvme n=0 && continue; fi
  file=${disk%%,*}
  arguments+=(-drive "file=$file,if=none,id=$kind$n,format=raw,discard=unmap")
  if [ $kind = disk ]; then
    arguments+=(-device "virtio-blk-pci,drive=disk$n")
  else
    arguments+=(-device "nvme,id=controller$n,serial=guest$n" -device "nvme-ns,bus=controller$n,drive=nvme$n${disk#"$file"}")
  fi
  n=$((n + 1))
done
if [ -n "$TAP" ]; then
  mac=$(printf '52:54:00:%02x:%02x:%02x' $((RANDOM % 256)) $((RANDOM % 256)) $((RANDOM % 256)))
  arguments+=(-netdev "tap,id=tap,ifname=$TAP,script=no,downscript=no" -device "virtio-net-pci,netdev=tap,romfile=,mac=$mac")
fi

# `cat` makes the script's output a pipe, which QEMU can open again by its name.
status=0
{ timeout --foreground -k 5 "$TIMEOUT_S" qemu-system-x86_64 "${arguments[@]}" 3>&1 >"$OUT/qemu.log" 2>&1; } | cat || status=$?
[ "$status" = 0 ] || [ "$status" = 124 ] || cat "$OUT/qemu.log" >&2
exit "$status"
