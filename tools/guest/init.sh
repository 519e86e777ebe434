#!/bin/bash
# init.sh JOB: the first process of a guest once its root is in place: mounts the rest, runs the job's script, leaves its exit
# code in /out/.guest/code and switches the guest off. The same in user-mode Linux and in QEMU.
#
# JOB/job sets GUEST_KIND, GUEST_SCRIPT, GUEST_ARGS, GUEST_CWD, GUEST_NET, GUEST_DISKS and exports the script's environment.
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8
job=$1

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /dev/pts /run
mount -t tmpfs shm /dev/shm
mount -t devpts -o mode=620,ptmxmode=666 devpts /dev/pts
mount -t tmpfs run /run
for link in fd:/proc/self/fd stdin:fd/0 stdout:fd/1 stderr:fd/2; do ln -sfn "${link#*:}" "/dev/${link%%:*}"; done
mkdir -p /run/lock
# shellcheck source=/dev/null
. "$job/job"

if [ "$GUEST_KIND" = uml ]; then
  terminal=/dev/tty1
else
  terminal=/dev/hvc0
  mkdir -p /lib/modules
  mount -o bind "$GUEST_MODULES" /lib/modules
  # The kernel loads by itself what a test asks for: digests, file systems, transports.
  command -v modprobe >/proc/sys/kernel/modprobe
  # No udev here: load the drivers of the devices that are there.
  # shellcheck disable=SC2046 # one alias a word
  modprobe -aq $(cat /sys/bus/pci/devices/*/modalias /sys/bus/virtio/devices/*/modalias)
  # What user-mode Linux has built in.
  modprobe -a configfs loop nvme-tcp nvmet nvmet-tcp nbd ublk_drv dm-mod tun
fi
mount -t configfs configfs /sys/kernel/config
mount -t debugfs debugfs /sys/kernel/debug
export DM_DISABLE_UDEV=1 # dmsetup makes its device nodes itself
ulimit -l unlimited
ulimit -c 0
hostname guest
# One and the same host identity in every run, whatever the machine has in /etc/nvme.
mkdir -p /etc/nvme
echo nqn.2014-08.org.nvmexpress:uuid:11111111-2222-4333-8444-555555555555 >/etc/nvme/hostnqn
echo 11111111-2222-4333-8444-555555555555 >/etc/nvme/hostid

ip link set lo up
# QEMU's user network: the host's 127.0.0.1 is 10.0.2.2.
[ -e /sys/class/net/eth0 ] && ip link set eth0 up && ip address add 10.0.2.15/24 dev eth0 && ip route add default via 10.0.2.2
if [ -n "$GUEST_NET" ]; then
  for card in vec0 eth1; do [ -e "/sys/class/net/$card" ] && ip link set "$card" name net0; done
  ip link set net0 up
  # User-mode Linux's card drops most of a large segment between two guests: 0.1 MB/s with them, 10 without. Opening it
  # turns them on, so this comes after.
  ethtool -K net0 tso off gso off gro off >/dev/null
  ip address add "$GUEST_NET" dev net0
fi

[ -z "${NVMF_BIN:-}" ] || PATH=$NVMF_BIN:$PATH
cd "$GUEST_CWD" || cd /
exec {script_output}>"$terminal"
stty raw <&"$script_output" # bytes go to the host as they are
setsid -w /bin/bash "$GUEST_SCRIPT" "${GUEST_ARGS[@]}" >&"$script_output" 2>&1 </dev/null
echo $? >/out/.guest/code
kill -KILL -1 # what the script left running
stty cooked <&"$script_output" # waits until all is written
# Only /out: a sync of everything would wait for ever on a file system whose namespace a test left dead.
sync -f /out
echo o >/proc/sysrq-trigger
exec sleep infinity
