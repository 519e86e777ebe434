#!/bin/bash
# volumes.sh: volumes of containers with all capabilities: the Docker plugin and the CSI driver on a pool of nvmf-target: ublk devices and the deaths of
# each program under I/O; ext4 that grows while it is mounted. The driver is called by a gRPC client that is not ours (grpc.py with curl).
# guest: --uml --mem 1536 --timeout 900
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite volumes

SOURCE=$(dirname "$GUEST_LIB")/../..
HOST=nqn.2014-08.org.nvmexpress:uuid:5f6f3a52-0d0c-4d2a-9d0a-0b6f3b1f0011
STORE=/mnt/store
RUN=$SUITE_TMP/run       # of the initiator's daemon
CLAIMS=$SUITE_TMP/claims # shared by plugin and driver
PLUGIN=$SUITE_TMP/plugin.sock
DRIVER=$SUITE_TMP/csi.sock
export NVMF_RPC=$SUITE_TMP/rpc.sock
on_failure "$RUN/daemon.log"
processes() { timeout 5 pgrep -f -- "[-]-run-dir $RUN .*$1"; }

OVER_RDMA=10.96.0.1
storage() {
  modprobe ublk_drv || test -c /dev/ublk-control
  scratch_fs xfs 900M $STORE
  [ -e /sys/class/net/dummy0 ] || ip link add dummy0 type dummy
  ip link set dummy0 up
  ip address add $OVER_RDMA/24 dev dummy0
  rdma link add rxe0 type rxe netdev dummy0
  cat >"$SUITE_TMP/t.toml" <<TOML
listen = ["tcp://127.0.0.1:4420", "rdma://$OVER_RDMA:4420"]
[api]
socket = "$NVMF_RPC"
state-dir = "$SUITE_TMP/state"
[pool.p]
path = "$STORE"
nqn-prefix = "nqn.2024-01.org.example"
overcommit = "allow"
TOML
}
start_target() {
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --config "$SUITE_TMP/t.toml" --ready-file "$SUITE_TMP/ready"
}
node=(--run-dir "$CLAIMS" --rpc "$NVMF_RPC" --hostnqn "$HOST" --hostid "${HOST##*:}" --initiator-run-dir "$RUN" --reconnect-delay 1)
FORM=ublk
start_plugin() { start plugin nvmf-docker serve --socket "$PLUGIN" --state-dir "$SUITE_TMP/plugin" --size 64M --block $FORM "${node[@]}"; }
start_driver() { start driver nvmf-csi --endpoint "unix://$DRIVER" --mode all --block $FORM "${node[@]}"; }
check 'a pool on XFS, and an RDMA device' storage
start_target
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"
# ask METHOD JSON: the plugin's answer; an error where there is one in it.
ask() {
  local answer
  answer=$(curl -s --max-time 50 --unix-socket "$PLUGIN" -X POST -d "$2" "http://plugin/VolumeDriver.$1")
  printf '%s\n' "$answer"
  jq -e '.Err == ""' <<<"$answer" >/dev/null
}
# call METHOD JSON: the driver's answer.
call() { python3 "$SOURCE/tests/guest/grpc.py" "$SOURCE/tools/nvmf-csi/proto/csi.proto" "$DRIVER" "$1" "$2"; }
ready() { ask List '{}'; call Identity/Probe '{}'; }
start_plugin
start_driver
check 'plugin and driver are ready' wait_until 20 ready

# device_at PATH: the device mounted there, which has the form that was asked for.
declare -A DEVICES=([ublk]='/dev/ublkb[0-9]*' [fuse]='/dev/loop[0-9]*')
device_at() { findmnt -no SOURCE "$1" | sed 's/\[.*//' | grep -x "${DEVICES[$FORM]}"; }
mib_at() { df --output=size -B1M "$1" | tail -n 1; }
# under_load FILE CMD: while fio writes to a file that is on a volume, or is one; it ends well only when all was written and read back.
writes() { awk '{ print $5 }' "/sys/block/$1/stat"; }
wrote() { [ "$(writes "$1")" -gt "$2" ]; }
under_load() {
  local file=$1 disk=${2##*/} load before
  before=$(writes "$disk")
  fio_verify "$file" --size=16M --time_based --runtime=6 >"$SUITE_TMP/load" 2>&1 &
  load=$!
  wait_until 20 wrote "$disk" $((before + 100))
  "${@:3}"
  wait $load || { cat "$SUITE_TMP/load" && return 1; }
}
another() { processes daemon | grep -qvx "$1"; }
daemon_dies() {
  local old
  old=$(processes daemon | head -n 1)
  kill -KILL "$old"
  wait_until 20 another "$old"
}
restart_plugin() {
  stop plugin KILL
  start_plugin
  wait_until 20 ask List '{}'
}
restart_driver() {
  stop driver KILL
  start_driver
  wait_until 20 call Identity/Probe '{}'
}
restart_target() {
  stop target KILL
  start_target
  wait_until 20 test -s "$SUITE_TMP/ready"
}
none_attached() { nvmf-initiator --run-dir "$RUN" list --json | jq -e '.controllers == []'; }

# --- Docker's plugin ----------------------------------------------------------------------------------------------------

AT=$SUITE_TMP/plugin/mounts/d
docker_mount() {
  ask Create '{"Name":"d","Opts":{"fs":"ext4"}}'
  ask Mount '{"Name":"d","ID":"i1"}'
  device_at "$AT"
  seq 10000 >"$AT/numbers"
}
check 'docker: a volume is made and mounted' docker_mount
DEVICE=$(device_at "$AT")
check 'docker: kill -9 of the plugin under I/O' under_load "$AT/file" "$DEVICE" restart_plugin
check "docker: kill -9 of the initiator's daemon under I/O" under_load "$AT/file" "$DEVICE" daemon_dies
check 'docker: kill -9 of the target under I/O' under_load "$AT/file" "$DEVICE" restart_target
docker_end() {
  ask Unmount '{"Name":"d","ID":"i1"}'
  expect 'what is mounted' '' "$(findmnt -n "$AT" || true)"
  none_attached
  ask Mount '{"Name":"d","ID":"i2"}'
  seq 10000 | cmp - "$AT/numbers"
  ask Unmount '{"Name":"d","ID":"i2"}'
  ask Remove '{"Name":"d"}'
}
check 'docker: unmounted, mounted again, removed' docker_end

# The driver of ublk in this kernel (6.12) keeps the size of a device: what grows is on FUSE with loop.
FORM=fuse
other_form() {
  restart_plugin
  restart_driver
}
check 'plugin and driver with the other form of devices' other_form
check 'docker: a volume on FUSE with loop' docker_mount
DEVICE=$(device_at "$AT")
docker_grow() {
  nvmf-docker grow d 128M --socket "$PLUGIN"
  expect 'still the same device' "$DEVICE" "$(device_at "$AT")"
  [ "$(mib_at "$AT")" -gt 100 ]
}
check 'docker: ext4 grows while it is mounted, under I/O' under_load "$AT/file" "$DEVICE" docker_grow
docker_space() {
  dd if=/dev/zero of="$AT/large" bs=1M count=80 conv=fsync status=none
  seq 10000 | cmp - "$AT/numbers"
  rm "$AT/large"
}
check 'docker: what was gained can be used, and nothing is lost' docker_space
check 'docker: unmounted, mounted again, removed' docker_end

# --- the CSI driver -----------------------------------------------------------------------------------------------------

MOUNT='{"mount":{"fs_type":"ext4"},"access_mode":{"mode":"SINGLE_NODE_WRITER"}}'
BLOCK='{"block":{},"access_mode":{"mode":"SINGLE_NODE_WRITER"}}'
STAGE=$SUITE_TMP/staging PUBLISHED=$SUITE_TMP/pod
mkdir "$STAGE" "$PUBLISHED"
# of NAME KEY: what CreateVolume or ControllerPublishVolume answered.
of() { jq -ce "$2" "$SUITE_TMP/$1"; }
# request NAME CAPABILITY [JSON]: the fields that most calls have.
request() {
  jq -nc --arg id "$(of "$1" .volume.volume_id | jq -r .)" --arg stage "$STAGE/$1" --argjson capability "$2" \
    --argjson context "$(of "$1" '.volume.volume_context // {}')" --argjson publish "$(of "$1.published" '.publish_context // {}')" --argjson more "${3:-"{}"}" \
    '{volume_id: $id, staging_target_path: $stage, volume_capability: $capability, volume_context: $context, publish_context: $publish} + $more'
}
only() { jq -c "{volume_id, $2}" <<<"$1"; }
# csi_up NAME CAPABILITY [PARAMETERS]
csi_up() {
  local name=$1 capability=$2 parameters=${3:-"{}"} id
  call Controller/CreateVolume "{\"name\":\"$name\",\"capacity_range\":{\"required_bytes\":67108864},\"volume_capabilities\":[$capability],\"parameters\":$parameters}" |
    tee "$SUITE_TMP/$name"
  id=$(of "$name" .volume.volume_id)
  call Controller/ControllerPublishVolume "{\"volume_id\":$id,\"node_id\":\"$HOST\",\"volume_capability\":$capability,\"volume_context\":$(of "$name" '.volume.volume_context // {}')}" |
    tee "$SUITE_TMP/$name.published"
  csi_stage "$@"
  csi_publish "$@"
}
csi_stage() { call Node/NodeStageVolume "$(request "$1" "$2")"; }
csi_publish() { call Node/NodePublishVolume "$(request "$1" "$2" "{\"target_path\":\"$PUBLISHED/$1\"}")"; }
csi_down() {
  local name=$1 id
  id=$(of "$name" .volume.volume_id)
  call Node/NodeUnpublishVolume "{\"volume_id\":$id,\"target_path\":\"$PUBLISHED/$name\"}"
  [ ! -e "$PUBLISHED/$name" ]
  call Node/NodeUnstageVolume "{\"volume_id\":$id,\"staging_target_path\":\"$STAGE/$name\"}"
  call Controller/ControllerUnpublishVolume "{\"volume_id\":$id,\"node_id\":\"$HOST\"}"
  none_attached
  call Controller/DeleteVolume "{\"volume_id\":$id}"
}
csi_grow() {
  local name=$1 capability=$2 id
  id=$(of "$name" .volume.volume_id)
  call Controller/ControllerExpandVolume "{\"volume_id\":$id,\"capacity_range\":{\"required_bytes\":134217728},\"volume_capability\":$capability}" | jq -e '.node_expansion_required == 1'
  call Node/NodeExpandVolume "{\"volume_id\":$id,\"volume_path\":\"$PUBLISHED/$name\",\"staging_target_path\":\"$STAGE/$name\",\"capacity_range\":{\"required_bytes\":134217728},\"volume_capability\":$capability}"
}

csi_mounts() {
  csi_up "$1" "$MOUNT"
  device_at "$PUBLISHED/$1"
  seq 10000 >"$PUBLISHED/$1/numbers"
}
csi_blocks() {
  csi_up "$1" "$BLOCK"
  test -b "$PUBLISHED/$1"
  expect 'its bytes' $((64 << 20)) "$(blockdev --getsize64 "$PUBLISHED/$1")"
  nvmf-initiator --run-dir "$RUN" list --json | jq -r '.controllers[].namespaces[].device' | grep -x "${DEVICES[$FORM]}"
}
the_device() { nvmf-initiator --run-dir "$RUN" list --json | jq -r '.controllers[].namespaces[].device'; }
csi_grows_mounted() {
  csi_grow g "$MOUNT"
  expect 'still the same device' "$DEVICE" "$(device_at "$PUBLISHED/g")"
  [ "$(mib_at "$PUBLISHED/g")" -gt 100 ]
}
csi_space() {
  dd if=/dev/zero of="$PUBLISHED/g/large" bs=1M count=80 conv=fsync status=none
  seq 10000 | cmp - "$PUBLISHED/g/numbers"
}
csi_grows_block() {
  csi_grow h "$BLOCK"
  expect 'its bytes' $((128 << 20)) "$(blockdev --getsize64 "$PUBLISHED/h")"
}
csi_restart() {
  restart_driver
  # What the kubelet repeats finds all in place.
  csi_stage "$1" "$2"
  csi_publish "$1" "$2"
}

check 'csi: a volume on FUSE with loop is made, published, staged and mounted' csi_mounts g
DEVICE=$(the_device)
check 'csi: ext4 grows while it is mounted, under I/O' under_load "$PUBLISHED/g/file" "$DEVICE" csi_grows_mounted
check 'csi: what was gained can be used, and nothing is lost' csi_space
check 'csi: it is unpublished, unstaged, deleted' csi_down g
check 'csi: a raw block volume on FUSE with loop' csi_blocks h
DEVICE=$(the_device)
check 'csi: it grows under I/O' under_load "$PUBLISHED/h" "$DEVICE" csi_grows_block
check 'csi: it is unpublished, unstaged, deleted' csi_down h

FORM=ublk
check 'plugin and driver with ublk again' other_form
check 'csi: a volume on ublk is made, published, staged and mounted' csi_mounts m
DEVICE=$(the_device)
check 'csi: kill -9 of the driver under I/O' under_load "$PUBLISHED/m/file" "$DEVICE" csi_restart m "$MOUNT"
check "csi: kill -9 of the initiator's daemon under I/O" under_load "$PUBLISHED/m/file" "$DEVICE" daemon_dies
check 'csi: it is unpublished, unstaged, deleted' csi_down m
check 'csi: a raw block volume on ublk' csi_blocks b
DEVICE=$(the_device)
check 'csi: kill -9 of the driver under I/O on the raw block volume' under_load "$PUBLISHED/b" "$DEVICE" csi_restart b "$BLOCK"
check "csi: kill -9 of the initiator's daemon under I/O on it" under_load "$PUBLISHED/b" "$DEVICE" daemon_dies
check 'csi: it is unpublished, unstaged, deleted' csi_down b

# --- over RDMA: the target has listeners of both transports; a volume is reached by TCP where nothing else was asked for ------------------------

transport() { nvmf-initiator --run-dir "$RUN" list --json | jq -r '.controllers[].address | split(":")[0]'; }
docker_over_rdma() {
  ask Create '{"Name":"d","Opts":{"transport":"rdma"}}'
  ask Mount '{"Name":"d","ID":"i1"}'
  expect 'transport' rdma "$(transport)"
  device_at "$AT"
  seq 10000 >"$AT/numbers"
  docker_end
}
check 'docker: a volume over RDMA' docker_over_rdma
csi_over_rdma() {
  csi_up r "$MOUNT" '{"transport":"rdma"}'
  expect 'published' '"rdma"' "$(of r.published .publish_context.targetTrType)"
  expect 'transport' rdma "$(transport)"
  fio_verify "$PUBLISHED/r/file" --size=16M
  csi_down r
}
check 'csi: a volume over RDMA' csi_over_rdma
csi_over_tcp() {
  csi_up t "$MOUNT" '{"transport":"tcp,rdma"}'
  expect 'transport' tcp "$(transport)"
  csi_down t
}
check 'csi: over TCP where that is asked for first' csi_over_tcp
refuse 'csi: a transport that there is not' 'transport.*rdma,tcp' csi_up w "$MOUNT" '{"transport":"fc"}'

leaves() {
  stop plugin
  stop driver
  expect 'claims' '' "$(ls "$CLAIMS/claims")"
  expect 'mounts' '' "$(grep -e "$SUITE_TMP" /proc/self/mountinfo || true)"
  expect 'devices' '' "$(compgen -G '/dev/ublkb*' || true)"
  expect 'volumes' '[]' "$(nvmfctl --json volume list | jq -c .)"
}
check 'nothing is left' leaves
