# shellcheck shell=bash
# nvmet.sh: the kernel's NVMe target through configfs, the devices of its host by what they are, and disks to put under both.
# Sourced by lib.sh.
#
#   nvmet_subsystem NQN [ATTRIBUTE=VALUE...]          open to any host unless attr_allow_any_host=0 is given
#   nvmet_namespace NQN NSID DEVICE [ATTRIBUTE=VALUE...]   enabled; DEVICE is a block device or a file
#   nvmet_port ID TRTYPE ADDRESS SERVICE [ATTRIBUTE=VALUE...]   e.g. param_inline_data_size=16384; IPv4 or IPv6
#   nvmet_link PORT NQN, nvmet_unlink PORT NQN        offers a subsystem on a port, or no longer: its hosts are cut off
#   nvmet_enable NQN NSID 0|1                         takes a namespace away, or brings it back
#   nvmet_allow NQN HOSTNQN, nvmet_deny NQN HOSTNQN   from the first on, only those allowed may connect
#   nvmet_clear                                       removes everything
#
#   ns_dev NQN NSID        the block device of a namespace that the kernel's host is connected to, as /dev/nvme0n1
#   ctrl_dev NQN           its controllers' devices, one a line, as /dev/nvme0
#   local_nvme INDEX       the controller that `guest run` made for the INDEXth --nvme (from 0), as /dev/nvme1
#   scratch_disk SIZE      makes a disk in memory and prints its loop device
#   scratch_fs TYPE SIZE DIR   a fresh file system of TYPE (ext4, xfs, btrfs) on such a disk, mounted on DIR
#   fio_verify FILE [FIO-ARGS]   writes and reads back with crc32c, at 4 KiB blocks and depth 16 unless told otherwise

NVMET=/sys/kernel/config/nvmet

# _attributes DIR ATTRIBUTE=VALUE...
_attributes() {
  local dir=$1 pair
  shift
  for pair; do printf '%s' "${pair#*=}" >"$dir/${pair%%=*}" || return; done
}

nvmet_subsystem() {
  local dir=$NVMET/subsystems/$1
  shift
  mkdir "$dir" && _attributes "$dir" attr_allow_any_host=1 "$@"
}

nvmet_namespace() {
  local dir=$NVMET/subsystems/$1/namespaces/$2 device=$3
  shift 3
  mkdir "$dir" && _attributes "$dir" "device_path=$device" "$@" enable=1
}

nvmet_port() {
  local dir=$NVMET/ports/$1 family=ipv4
  [[ $3 != *:* ]] || family=ipv6
  mkdir "$dir" && _attributes "$dir" "addr_trtype=$2" "addr_adrfam=$family" "addr_traddr=$3" "addr_trsvcid=$4" "${@:5}"
}

nvmet_link() { ln -s "$NVMET/subsystems/$2" "$NVMET/ports/$1/subsystems/$2"; }
nvmet_unlink() { rm "$NVMET/ports/$1/subsystems/$2"; }
nvmet_enable() { echo "$3" >"$NVMET/subsystems/$1/namespaces/$2/enable"; }

nvmet_allow() {
  echo 0 >"$NVMET/subsystems/$1/attr_allow_any_host" || return
  [ -d "$NVMET/hosts/$2" ] || mkdir "$NVMET/hosts/$2" || return
  ln -s "$NVMET/hosts/$2" "$NVMET/subsystems/$1/allowed_hosts/$2"
}
nvmet_deny() { rm "$NVMET/subsystems/$1/allowed_hosts/$2"; }

nvmet_clear() {
  local entry
  for entry in "$NVMET"/ports/*/subsystems/* "$NVMET"/subsystems/*/allowed_hosts/*; do [ ! -L "$entry" ] || rm "$entry" || return; done
  for entry in "$NVMET"/ports/* "$NVMET"/subsystems/*/namespaces/* "$NVMET"/subsystems/* "$NVMET"/hosts/*; do
    [ ! -d "$entry" ] || rmdir "$entry" || return
  done
}

# The number in /dev/nvme0n1 is the kernel's own count and need not be the NSID; and the hidden nvme0c0n1 of one path is no device.
ns_dev() {
  local dir
  for dir in /sys/block/nvme*; do
    [[ ${dir##*/} =~ ^nvme[0-9]+n[0-9]+$ ]] || continue
    [ "$(cat "$dir/device/subsysnqn" 2>/dev/null)" = "$1" ] && [ "$(cat "$dir/nsid" 2>/dev/null)" = "$2" ] || continue
    [ -b "/dev/${dir##*/}" ] && printf '/dev/%s\n' "${dir##*/}" && return
  done
  echo "the host has no namespace $2 of $1" >&2
  return 1
}

ctrl_dev() {
  local dir found=1
  for dir in /sys/class/nvme/nvme*; do
    [ "$(cat "$dir/subsysnqn" 2>/dev/null)" = "$1" ] && printf '/dev/%s\n' "${dir##*/}" && found=0
  done
  [ $found = 0 ] || echo "the host has no controller of $1" >&2
  return $found
}

local_nvme() {
  local dir
  for dir in /sys/class/nvme/nvme*; do
    [ "$(tr -d ' ' <"$dir/serial")" = "guest$1" ] && [ -b "/dev/${dir##*/}n1" ] && printf '/dev/%s\n' "${dir##*/}" && return
  done
  echo "the guest has no emulated NVMe controller $1" >&2
  return 1
}

scratch_disk() {
  local file
  file=$(mktemp /dev/shm/disk.XXXXXX) && truncate -s "$1" "$file" && losetup --find --show "$file"
}

scratch_fs() {
  local disk
  disk=$(scratch_disk "$2") && "mkfs.$1" -q "$disk" && mkdir -p "$3" && mount "$disk" "$3"
}

fio_verify() {
  local file=$1
  shift
  fio --name=verify --filename="$file" --direct=1 --rw=randwrite --bs=4k --iodepth=16 --ioengine=io_uring \
    --verify=crc32c --verify_fatal=1 --do_verify=1 --verify_state_save=0 --output-format=terse --terse-version=3 "$@"
}
