#!/bin/bash
# docker.sh: nvmf-docker: its protocol with all that dockerd does to plugins, and then a real dockerd on it, on this machine.
# guest: host
if [ -z "${OWN_MOUNTS:-}" ]; then
  # Mounts of its own: /run/docker is this suite's alone, and what is left after a failure ends with it.
  own=(unshare --mount env OWN_MOUNTS=1 "PATH=$PATH" "GUEST_KIND=$GUEST_KIND" "GUEST_LIB=$GUEST_LIB" "SUITE_OUT=$SUITE_OUT" "NVMF_SOAK=${NVMF_SOAK:-1}")
  [ "$(id -u)" = 0 ] || own=(sudo -n "${own[@]}")
  exec "${own[@]}" bash "$0"
fi
# shellcheck source=../../tools/guest/lib.sh
. "$GUEST_LIB"
suite docker

ADDRESS=127.$((64 + RANDOM % 128)).$((RANDOM % 256)).$((1 + RANDOM % 254))
HOST=nqn.2024-01.org.example:docker-host
RUN=$SUITE_TMP/run         # of the initiator's daemon
STATE=$SUITE_TMP/plugin    # of the plugin
STORE=$SUITE_TMP/store     # the pool
PKI=$SUITE_TMP/pki         # certificates
CONFIG=$SUITE_TMP/target.toml
RPC=$SUITE_TMP/rpc.sock
PLUGIN=/run/docker/plugins/nvmf.sock
DOCKER=$SUITE_TMP/docker
mkdir "$STORE" "$DOCKER"
on_failure "$RUN/daemon.log"
ours() { nvmf-initiator --run-dir "$RUN" "$@"; }
processes() { timeout 5 pgrep -f -- "[-]-run-dir $RUN .*$1"; }
ended() { [ -z "$(processes daemon)$(processes keeper)" ]; }
loop_of() { grep -lx -- "/$1" /sys/block/loop*/loop/backing_file 2>/dev/null | cut -d/ -f4; }

# clean_up: takes away whatever a failure may have left, and only what is this suite's.
clean_up() {
  local name role process number at names=()
  for name in "$RUN"/by-id/*; do [ ! -L "$name" ] || names+=("${name##*/}"); done
  for name in dockerd plugin; do
    [ ! -e "$SUITE_TMP/$name.pid" ] || kill -KILL "$(pid "$name")" 2>/dev/null
  done
  for process in $(timeout 5 pgrep -f -- "$DOCKER/"); do kill -KILL "$process" 2>/dev/null; done
  while read -r at; do umount --lazy "$at"; done < <(awk -v tmp="$SUITE_TMP/" 'index($5, tmp) == 1 { print $5 }' /proc/self/mountinfo | grep -v "^$STORE\$" | tac)
  timeout 30 nvmf-initiator --run-dir "$RUN" disconnect --all --force >/dev/null 2>&1
  # Each would start the other again: the daemon is stopped meanwhile.
  for process in $(processes daemon); do kill -STOP "$process"; done
  for role in keeper daemon; do
    for process in $(processes "$role"); do kill -KILL "$process"; done
  done
  wait_until 10 ended
  for name in "${names[@]}"; do
    for number in $(loop_of "$name"); do losetup --detach "/dev/$number"; done
  done
  kill -CONT "$(pid target)" 2>/dev/null
  kill -KILL "$(pid target)" 2>/dev/null
  while mountpoint -q "$STORE"; do wait_until 10 umount "$STORE" || umount --lazy "$STORE" || break; done
}
at_end clean_up

# --- the pool, the target, the plugin -----------------------------------------------------------------------------------

storage() {
  [ -c /dev/fuse ] || modprobe fuse
  [ -c /dev/loop-control ] || modprobe loop
  mkdir -p /run/docker
  mount -t tmpfs none /run/docker
  truncate -s 4G "$SUITE_TMP/disk"
  mkfs.xfs -q "$SUITE_TMP/disk"
  mount -o loop "$SUITE_TMP/disk" "$STORE"
  cat >"$CONFIG" <<TOML
listen = ["tcp://$ADDRESS:4420"]
[api]
socket = "$RPC"
state-dir = "$SUITE_TMP/target"
[api.tls]
listen = "$ADDRESS:4421"
certificate = "$PKI/target.pem"
key = "$PKI/target.key"
client-ca = "$PKI/ca.pem"
clients = ["node"]
[pool.containers]
path = "$STORE"
nqn-prefix = "nqn.2024-01.org.example"
overcommit = "allow"
TOML
  nvmf-target --config "$CONFIG" --check
}
# authority FOLDER: a certificate that signs others; signed FOLDER NAME ALTERNATIVE-NAME USE: such another, with its key.
authority() {
  mkdir "$1"
  openssl req -x509 -newkey rsa:2048 -nodes -keyout "$1/ca.key" -out "$1/ca.pem" -days 2 -subj /CN=authority
}
signed() {
  openssl req -newkey rsa:2048 -nodes -keyout "$1/$2.key" -out "$1/$2.csr" -subj "/CN=$2"
  openssl x509 -req -in "$1/$2.csr" -CA "$1/ca.pem" -CAkey "$1/ca.key" -CAcreateserial -days 2 -out "$1/$2.pem" \
    -extfile <(printf 'subjectAltName=%s\nextendedKeyUsage=%s\n' "$3" "$4")
}
pki() {
  authority "$PKI"
  signed "$PKI" target "IP:$ADDRESS" serverAuth
  signed "$PKI" node DNS:node clientAuth
  signed "$PKI" other DNS:other clientAuth
  authority "$PKI/foreign"
  signed "$PKI/foreign" node DNS:node clientAuth
}
start_target() {
  rm -f "$SUITE_TMP/ready"
  start target nvmf-target --config "$CONFIG" --ready-file "$SUITE_TMP/ready"
}
# start_plugin [WORDS]: how it reaches the target, otherwise by its socket.
start_plugin() {
  [ $# != 0 ] || set -- --rpc "$RPC"
  start plugin nvmf-docker serve --state-dir "$STATE" --run-dir "$SUITE_TMP/claims" "$@" --hostnqn $HOST \
    --hostid 7a3f2f0e-92a5-4a4c-8d3c-0f2c31b5a9d1 --initiator-run-dir "$RUN" --size 320M --tidy-every 1 --reconnect-delay 1 --block fuse
}
# rpc METHOD JSON: the target's answer; an error where it refuses.
rpc() {
  python3 - "$RPC" "$1" "$2" <<'PYTHON'
import json, socket, sys
path, method, params = sys.argv[1:]
s = socket.socket(socket.AF_UNIX)
s.settimeout(50)
s.connect(path)
s.sendall(json.dumps({"jsonrpc": "2.0", "id": 1, "method": method, "params": json.loads(params)}).encode())
text = b""
while True:
    text += s.recv(1 << 16)
    try:
        answer = json.loads(text)
        break
    except ValueError:
        pass
if "error" in answer:
    sys.exit(json.dumps(answer["error"]))
print(json.dumps(answer["result"]))
PYTHON
}
plugin_is_up() { curl -sf --unix-socket "$PLUGIN" -X POST http://plugin/VolumeDriver.Capabilities; }
check 'an authority, and certificates for the target and for nodes' pki
check 'a pool on XFS' storage
start_target
check 'the target is ready' wait_until 20 test -s "$SUITE_TMP/ready"
start_plugin
check 'the plugin is ready' wait_until 20 plugin_is_up

# ask METHOD JSON: the answer; an error where there is one in it.
ask() {
  local answer
  answer=$(curl -s --max-time "${ASK_LIMIT:-50}" --unix-socket "$PLUGIN" -X POST -d "$2" "http://plugin/$1")
  printf '%s\n' "$answer"
  # Of nothing at all jq would make no error.
  [ -n "$answer" ]
  jq -e '.Err == ""' <<<"$answer" >/dev/null
}
driver() { ask "VolumeDriver.$1" "$2"; }
create() { driver Create "{\"Name\":\"$1\",\"Opts\":${2:-null}}"; }
mount_volume() { driver Mount "{\"Name\":\"$1\",\"ID\":\"$2\"}"; }
unmount_volume() { driver Unmount "{\"Name\":\"$1\",\"ID\":\"$2\"}"; }
remove() { driver Remove "{\"Name\":\"$1\"}"; }
activate() { ask Plugin.Activate '' | jq -e '.Implements == ["VolumeDriver"]'; }
at() { printf '%s\n' "$STATE/mounts/$1"; }
is_mounted() { mountpoint -q "$(at "$1")"; }
is_unmounted() { ! is_mounted "$1"; }
# unanswered METHOD JSON: a request that dockerd gives up after a second, as the target is stopped.
unanswered() {
  local got=0
  curl -s --max-time 1 --unix-socket "$PLUGIN" -X POST -d "$2" "http://plugin/VolumeDriver.$1" || got=$?
  expect 'time-out of curl' 28 "$got"
}
# nothing_attached: no device, and no host may connect to any volume.
nothing_attached() {
  ours list --json | jq -e '.controllers == []'
  rpc pool_get_volumes '{}' | jq -e 'all(.hosts == [] and .connected_hosts == [])'
}
in_pool() { rpc pool_get_volumes '{}' | jq -e --arg name "$1" 'any(.name == $name)'; }
not_in_pool() { ! in_pool "$1"; }

# --- the protocol, with all that dockerd does to plugins ----------------------------------------------------------------

check 'Activate' activate
capabilities() { ask VolumeDriver.Capabilities '' | jq -e '.Capabilities.Scope == "local"'; }
check 'Capabilities' capabilities
anonymous() {
  create a1 null
  driver Get '{"Name":"a1"}' | jq -e '.Volume.Name == "a1" and .Volume.Mountpoint == "" and .Volume.Status.fs == "ext4"'
  driver List '{}' | jq -e '.Volumes | map(.Name) == ["a1"]'
  driver Path '{"Name":"a1"}' | jq -e '.Mountpoint == ""'
  in_pool a1
}
check 'an anonymous volume: Opts is null' anonymous
check 'Create of the same again' create a1 '{}'
refuse 'Create of the same with another size' 'exists with another size' create a1 '{"size":"1G"}'
refuse 'an unknown option is named' "unknown option .sise.; there are size" create b '{"sise":"1G"}'
refuse 'XFS on too small a volume' 'at least 300 MiB' create b '{"fs":"xfs","size":"100M"}'
refuse 'a file system that is not supported' 'ext4 and xfs' create b '{"fs":"btrfs"}'
refuse 'a pool that does not exist' 'nowhere' create b '{"pool":"nowhere"}'
refuse 'mkfs-options that name a device' 'names a file or device' create b '{"mkfs-options":"-J device=/dev/sda"}'
refuse 'a name that leaves its folder' 'is no name' create ../b
check 'none of these left a volume' not_in_pool b
refuse 'Get of what does not exist' 'no such volume' driver Get '{"Name":"b"}'
refuse 'Mount of what does not exist' 'no such volume' mount_volume b i1
empty() { ask VolumeDriver.Mount ''; }
refuse 'a retry without a body, as after a broken connection' 'lost its connection' empty
garbage() { ask VolumeDriver.Mount '{"Name":'; }
refuse 'half a request' "the request's body" garbage
large() { head -c 3000000 /dev/zero | curl -sS --unix-socket "$PLUGIN" -X POST --data-binary @- http://plugin/VolumeDriver.Get | tee /dev/stderr | jq -e '.Err == ""'; }
refuse 'a request of 3 MB' 'limit|pipe|reset|Send failure' large

same_id() {
  mount_volume a1 i1 | jq -e --arg at "$(at a1)" '.Mountpoint == $at'
  mount_volume a1 i1
  expect 'an empty folder, for copy-up' '' "$(ls -A "$(at a1)")"
  echo data >"$(at a1)/file"
  unmount_volume a1 i1
  is_mounted a1
  unmount_volume a1 i1
  is_unmounted a1
  nothing_attached
}
check 'the same ID twice counts twice' same_id
two_ids() {
  mount_volume a1 i1
  expect 'the data' data "$(cat "$(at a1)/file")"
  mount_volume a1 i2
  unmount_volume a1 i1
  is_mounted a1
  unmount_volume a1 i1 # once too often: takes nothing of the other
  is_mounted a1
  unmount_volume a1 i2
  is_unmounted a1
}
check 'another ID keeps it mounted' two_ids
while_mounted() { remove a1; }
mount_i1() { mount_volume a1 i1; }
unmount_i1() {
  unmount_volume a1 i1
  is_unmounted a1
}
check 'mounted' mount_i1
refuse 'Remove while mounted' 'a1 is in use' while_mounted
check 'unmounted' unmount_i1

# dockerd is killed: it never unmounts.
reused_id() {
  mount_volume a1 i1
  activate
  mount_volume a1 i1 # the container is started again, with the ID that it had
  is_mounted a1
  unmount_volume a1 i1
  is_unmounted a1
  nothing_attached
}
check 'a killed dockerd, and its ID used again' reused_id
abandoned() {
  mount_volume a1 i1
  mount_volume a1 i2
  activate
  wait_until 10 is_unmounted a1
  wait_until 10 nothing_attached
}
check 'a killed dockerd, and its containers never started again' abandoned
# container: a process that has the volume in mounts of its own, as a container has.
container() {
  mkdir -p "$SUITE_TMP/inside"
  # shellcheck disable=SC2016 # the inner shell's
  start container unshare --mount sh -c 'mount --bind "$0" "$1" && touch "$1/started" && exec sleep 1000' "$(at a1)" "$SUITE_TMP/inside"
  wait_until 10 test -e "$(at a1)/started"
}
live_restore() {
  mount_volume a1 i1
  container
  activate
  mount_volume a1 i1 # docker cp
  unmount_volume a1 i1
  is_mounted a1
  # Longer than the plugin takes to tidy up.
  activate
  touch "$(at a1)/still" && is_mounted a1
  stop container KILL
  unmount_volume a1 i1
  is_unmounted a1
  nothing_attached
}
check 'with live-restore a running container keeps its mount' live_restore

# Time-outs: the target is stopped, so that nothing can be done, and goes on when dockerd has given up.
pause() { kill -STOP "$(pid target)"; }
resume() { kill -CONT "$(pid target)"; }
given_up() {
  pause
  unanswered Mount '{"Name":"a1","ID":"i1"}'
  resume
  wait_until 20 grep -q 'nobody waits for it any more' "$SUITE_OUT/plugin.log"
  wait_until 20 nothing_attached
  is_unmounted a1
  driver Get '{"Name":"a1"}' | jq -e '.Volume.Status.mounts == 0'
}
check 'a Mount that dockerd has given up is undone' given_up
get_meanwhile() {
  pause
  ASK_LIMIT=5 driver Get '{"Name":"a1"}'
  ASK_LIMIT=5 driver List '{}'
  resume
}
check 'Get and List need no target' get_meanwhile

# The plugin is killed.
restart_plugin() {
  stop plugin KILL
  start_plugin
  wait_until 20 plugin_is_up
}
killed_mounted() {
  mount_volume a1 i1
  restart_plugin
  is_mounted a1
  driver Get '{"Name":"a1"}' | jq -e '.Volume.Mountpoint != "" and .Volume.Status.mounts == 1'
  unmount_volume a1 i1
  is_unmounted a1
  nothing_attached
}
check 'the plugin is killed while a volume is mounted' killed_mounted
killed_in_mount() {
  pause
  unanswered Mount '{"Name":"a1","ID":"i1"}'
  stop plugin KILL
  resume
  start_plugin
  wait_until 20 plugin_is_up
  wait_until 20 nothing_attached
  is_unmounted a1
  mount_volume a1 i1
  unmount_volume a1 i1
}
check 'the plugin is killed in the middle of a Mount' killed_in_mount
killed_in_create() {
  pause
  unanswered Create '{"Name":"c1","Opts":null}'
  stop plugin KILL
  resume
  start_plugin
  wait_until 20 plugin_is_up
  wait_until 20 not_in_pool c1
  driver List '{}' | jq -e '.Volumes | map(.Name) == ["a1"]'
  create c1
  remove c1
}
check 'the plugin is killed in the middle of a Create' killed_in_create
killed_in_remove() {
  create c1
  pause
  unanswered Remove '{"Name":"c1"}'
  stop plugin KILL
  resume
  start_plugin
  wait_until 20 plugin_is_up
  wait_until 20 not_in_pool c1
}
check 'the plugin is killed in the middle of a Remove' killed_in_remove
detached_under_it() {
  mount_volume a1 i1
  stop plugin KILL
  umount "$(at a1)"
  start_plugin
  wait_until 20 plugin_is_up
  mount_volume a1 i2
  expect 'the data' data "$(cat "$(at a1)/file")"
  unmount_volume a1 i1
  unmount_volume a1 i2
  nothing_attached
}
check 'somebody unmounted it meanwhile' detached_under_it

# Other nodes.
other='nqn.2024-01.org.example:other-host'
granted() { rpc pool_add_host "{\"pool\":\"containers\",\"name\":\"a1\",\"host\":\"$other\"}"; }
check 'another node has the volume' granted
refuse 'Mount of what another node has' "granted to $other" mount_i1
taken_away() {
  rpc pool_remove_host "{\"pool\":\"containers\",\"name\":\"a1\",\"host\":\"$other\"}"
  nothing_attached
  mount_volume a1 i1
  unmount_volume a1 i1
}
check 'and here, once its grant was taken away' taken_away
foreign() { rpc pool_create_volume '{"pool":"containers","name":"f1","size_bytes":67108864}'; }
check 'a volume that was not made for Docker' foreign
refuse 'Create of its name' 'not made for Docker' create f1
taken_up() {
  # As on another node, or after the state was lost.
  stop plugin
  mv "$STATE/state.json" "$SUITE_TMP/state.json"
  start_plugin
  wait_until 20 plugin_is_up
  create a1 null
  mount_volume a1 i1
  expect 'the data' data "$(cat "$(at a1)/file")"
  unmount_volume a1 i1
}
check 'a volume of the pool is taken up by its name' taken_up

# Somebody else's data.
overwritten() {
  create d1
  dd if=/dev/urandom of="$STORE/volumes/d1.raw" bs=4k count=1 conv=notrunc status=none
  cksum <"$STORE/volumes/d1.raw" >"$SUITE_TMP/before"
}
check 'a volume with data of an unknown form' overwritten
refuse 'Mount of it' 'unknown form' mount_volume d1 i1
untouched() {
  cmp "$SUITE_TMP/before" <(cksum <"$STORE/volumes/d1.raw")
  nothing_attached
  remove d1
}
check 'it is as it was, and nothing is left attached' untouched

# Clones.
for fs in ext4 xfs; do
  clones() {
    create "src-$fs" "{\"fs\":\"$fs\"}"
    mount_volume "src-$fs" i1
    echo one >"$(at "src-$fs")/file"
    # While the source is mounted, and without a sync by the user.
    create "clone-$fs" "{\"from\":\"src-$fs\"}"
    mount_volume "clone-$fs" i2
    expect 'the clone' one "$(cat "$(at "clone-$fs")/file")"
    echo two >"$(at "clone-$fs")/file"
    expect 'the source' one "$(cat "$(at "src-$fs")/file")"
    sync -f "$(at "src-$fs")"
    rpc pool_create_snapshot "{\"pool\":\"containers\",\"volume\":\"src-$fs\",\"name\":\"snap-$fs\"}"
    echo three >"$(at "src-$fs")/file"
    create "ro-$fs" "{\"from\":\"snapshot:snap-$fs\",\"ro\":\"true\"}"
    mount_volume "ro-$fs" i3
    expect 'of the snapshot' one "$(cat "$(at "ro-$fs")/file")"
    grep -q " $(at "ro-$fs") ro," /proc/self/mountinfo
    for volume in src clone ro; do
      unmount_volume "$volume-$fs" "i$([ $volume = src ] && echo 1 || { [ $volume = clone ] && echo 2 || echo 3; })"
    done
    for volume in clone ro src; do remove "$volume-$fs"; done
    rpc pool_delete_snapshot "{\"pool\":\"containers\",\"name\":\"snap-$fs\"}"
    nothing_attached
  }
  check "$fs: a clone beside its source, and a read-only one of a snapshot" clones
done
grow() {
  local before
  create g1 '{"fs":"xfs"}'
  mount_volume g1 i1
  before=$(df --output=size -B1M "$(at g1)" | tail -n 1)
  nvmf-docker grow g1 640M
  [ "$(df --output=size -B1M "$(at g1)" | tail -n 1)" -gt $((before + 300)) ]
  dd if=/dev/zero of="$(at g1)/large" bs=1M count=500 conv=fsync status=none
  unmount_volume g1 i1
  remove g1
}
check 'a volume grows while it is mounted, and what was gained can be used' grow
shrink() { nvmf-docker grow a1 100M; }
refuse 'a volume does not shrink' 'pool_resize_volume' shrink
second() { nvmf-docker serve --state-dir "$STATE" --run-dir "$SUITE_TMP/claims" --socket "$SUITE_TMP/second.sock" --rpc "$RPC"; }
refuse 'a second plugin on the same state' 'another nvmf-docker works' second
removed() {
  remove a1
  not_in_pool a1
  driver List '{}' | jq -e '.Volumes == []'
  nothing_attached
}
check 'Remove' removed

# --- dockerd ------------------------------------------------------------------------------------------------------------

D() { timeout $((100 * NVMF_SOAK)) /usr/bin/docker -H "unix://$DOCKER/sock" "$@"; }
# start_dockerd [OPTIONS]
start_dockerd() {
  # Of a dockerd that was killed, and of the containerd that dies with it; it would wait for what it takes for processes.
  rm -f "$DOCKER/pid" "$DOCKER/exec/containerd/containerd.pid"
  start dockerd /usr/sbin/dockerd --data-root "$DOCKER/data" --exec-root "$DOCKER/exec" --pidfile "$DOCKER/pid" -H "unix://$DOCKER/sock" \
    --iptables=false --ip6tables=false --bridge=none "$@"
}
image() {
  local root=$SUITE_TMP/image
  mkdir -p "$root/bin" "$root/seed" "$root/data" "$root/tmp"
  cp "$(command -v busybox)" "$root/bin/busybox"
  for name in sh cat echo sleep ls dd sync touch test sha256sum df; do ln -s busybox "$root/bin/$name"; done
  echo from-the-image >"$root/seed/file"
  tar -C "$root" -c . | D import - box
}
start_dockerd
check 'dockerd is up' wait_until 40 D info
check 'an image' image
run() { D run --network none "$@"; }
volume_create() { D volume create -d nvmf "$@"; }
no_mounts() {
  wait_until 10 nothing_attached
  ! grep -q " $STATE/mounts/" /proc/self/mountinfo
}

persists() {
  volume_create -o size=400M -o fs=ext4 v1
  run --rm -v v1:/data box sh -c 'echo kept >/data/file'
  no_mounts
  expect 'the data' kept "$(run --rm -v v1:/data box cat /data/file)"
  no_mounts
}
check 'what one container wrote the next one reads' persists
# dockerd asks for it by Get and sends no Create, whatever the options say.
exists() {
  volume_create v1
  expect 'the data' kept "$(run --rm -v v1:/data box cat /data/file)"
  no_mounts
}
check 'docker volume create of what exists leaves it as it is' exists
inspect() {
  D volume inspect v1 | tee "$SUITE_TMP/inspect"
  jq -e '.[0] | .Driver == "nvmf" and .Status.pool == "containers" and .Status.size_bytes == 419430400 and .Status.fs == "ext4"' "$SUITE_TMP/inspect"
  D volume ls -q | grep -x v1
}
check 'inspect and ls' inspect
refuse_bad() { volume_create -o sise=1G v9; }
refuse 'a wrong option is explained to the user' 'unknown option' refuse_bad
# serve_loop NAME VOLUME: a container that writes a line about every 50 ms, each synced, until it is stopped.
serve_loop() {
  # shellcheck disable=SC2016 # the container's shell's
  run -d --name "$1" -v "$2:/data" box sh -c 'n=0; while [ ! -e /data/stop ]; do n=$((n + 1)); echo $n >>/data/log || exit 9; sync /data/log || exit 8; sleep 0.05; done'
}
lines() { wc -l <"$(at "$1")/log"; }
wrote_on() { [ "$(lines "$1")" -gt "$2" ]; }
two_containers() {
  run -d --name one -v v1:/data box sleep 1000
  run -d --name two -v v1:/data box sleep 1000
  D exec one sh -c 'echo hello >/data/shared'
  expect 'seen by the other' hello "$(D exec two cat /data/shared)"
  D rm -f one
  is_mounted v1
  D exec two sh -c 'echo again >/data/shared'
  D rm -f two
  no_mounts
}
check 'two containers on one volume' two_containers
copy_up() {
  volume_create v2
  run --rm -v v2:/seed box cat /seed/file
  expect "the image's file" from-the-image "$(run --rm -v v2:/data box cat /data/file)"
  no_mounts
}
check 'copy-up of what the image has' copy_up
cp_in_and_out() {
  run -d --name one -v v1:/data box sleep 1000
  echo copied >"$SUITE_TMP/copied"
  D cp "$SUITE_TMP/copied" one:/data/in
  expect 'copied in' copied "$(D exec one cat /data/in)"
  D cp one:/data/in "$SUITE_TMP/out"
  cmp "$SUITE_TMP/copied" "$SUITE_TMP/out"
  is_mounted v1
  D exec one touch /data/still
  D rm -f one
  no_mounts
}
check 'docker cp into and out of a running container' cp_in_and_out
clone() {
  volume_create -o from=v1 v3
  expect 'the clone' kept "$(run --rm -v v3:/data box cat /data/file)"
  run -d --name one -v v1:/data -v v3:/clone box sleep 1000
  D exec one sh -c 'echo other >/clone/file'
  expect 'the source' kept "$(D exec one cat /data/file)"
  D rm -f one
  no_mounts
}
check 'a clone, also beside its source' clone
grows() {
  local before
  volume_create -o fs=xfs -o size=320M v4
  run -d --name one -v v4:/data box sleep 1000
  before=$(D exec one df -m /data | awk 'END { print $2 }')
  nvmf-docker grow v4 640M
  [ "$(D exec one df -m /data | awk 'END { print $2 }')" -gt $((before + 300)) ]
  D exec one dd if=/dev/zero of=/data/large bs=1M count=450
  D rm -f one
}
check 'a volume grows under a container' grows
in_use() { D volume rm v1; }
hold() { run -d --name one -v v1:/data box sleep 1000; }
check 'a container uses a volume' hold
refuse 'its removal is refused' 'in use' in_use
release() {
  D rm -f one
  no_mounts
}
check 'the container ends' release
anonymous_volume() {
  run -d --name one --volume-driver nvmf -v /data box sleep 1000
  D exec one touch /data/file
  expect 'one more volume' 1 "$(rpc pool_get_volumes '{}' | jq 'map(select(.name | length == 64)) | length')"
  D rm -f -v one
  expect 'and none' 0 "$(rpc pool_get_volumes '{}' | jq 'map(select(.name | length == 64)) | length')"
}
check 'an anonymous volume lives as long as its container' anonymous_volume

# Deaths.
running() { serve_loop one v1 && wait_until 20 wrote_on v1 5; }
check 'a container that writes' running
plugin_dies() {
  local before
  before=$(lines v1)
  stop plugin KILL
  wait_until 20 wrote_on v1 $((before + 5))
  start_plugin
  wait_until 20 plugin_is_up
  D volume ls -q | grep -x v1
  wait_until 20 wrote_on v1 $((before + 15))
  is_mounted v1
}
check 'the plugin is killed and started again under it' plugin_dies
target_dies() {
  local before
  before=$(lines v1)
  stop target KILL
  start_target
  wait_until 20 test -s "$SUITE_TMP/ready"
  wait_until 30 wrote_on v1 $((before + 5))
}
check 'the target is killed and started again under it' target_dies
daemon_dies() {
  local before process
  before=$(lines v1)
  process=$(processes daemon | head -n 1)
  kill -KILL "$process"
  wait_until 30 wrote_on v1 $((before + 5))
}
check "the initiator's daemon is killed under it" daemon_dies
dockerd_dies() {
  stop dockerd KILL
  start_dockerd
  wait_until 40 D info
  D start one
  wait_until 20 wrote_on v1 "$(lines v1)"
  complete_until_restart
}
# The container began to count anew when it was started again.
complete_until_restart() { awk '$1 != last + 1 && $1 != 1 { exit 1 } { last = $1 }' "$(at v1)/log"; }
check 'dockerd is killed and started again, and the container with it' dockerd_dies
ends() {
  touch "$(at v1)/stop"
  expect 'its exit code' 0 "$(D wait one)"
  D rm one
  no_mounts
}
check 'no write of it failed, and nothing stays mounted' ends
dockerd_dies_unused() {
  run -d --name one -v v1:/data box sleep 1000
  stop dockerd KILL
  start_dockerd
  wait_until 40 D info
  # Killed with its dockerd, and not started again.
  wait_until 30 no_mounts
  D rm -f one
}
check 'dockerd is killed, and its container not started again' dockerd_dies_unused
# With live-restore the container outlives its dockerd, and with it the use of the volume, of which the next dockerd says nothing.
outlives() {
  local before
  stop dockerd
  start_dockerd --live-restore
  wait_until 40 D info
  serve_loop one v3
  wait_until 20 wrote_on v3 5
  stop dockerd KILL
  before=$(lines v3)
  wait_until 20 wrote_on v3 $((before + 5))
  start_dockerd --live-restore
  wait_until 40 D info
  # Longer than the plugin takes to tidy up; and another use of the volume comes and goes.
  before=$(lines v3)
  wait_until 20 wrote_on v3 $((before + 40))
  D cp one:/data/log "$SUITE_TMP/log"
  is_mounted v3
  before=$(lines v3)
  wait_until 20 wrote_on v3 $((before + 5))
  touch "$(at v3)/stop"
  expect 'its exit code' 0 "$(D wait one)"
  # Every line from 1 on. The plugin may have taken the mount away by now: it was asked for by a dockerd that is gone.
  run --rm -v v3:/data box cat /data/log >"$SUITE_TMP/log"
  awk '$1 != NR { exit 1 } END { exit NR == 0 }' "$SUITE_TMP/log"
  D rm one
  wait_until 30 no_mounts
}
check 'with live-restore a container writes on while dockerd is killed and started again' outlives
# Docker 20.10 prunes the volumes of its own driver only; those of later versions are for the plugin to bear.
prune() {
  run -d --name one -v v2:/data box sleep 1000
  D volume prune -f
  expect 'the file' from-the-image "$(D exec one cat /data/file)"
  D rm -f one
  expect 'the data' kept "$(run --rm -v v1:/data box cat /data/file)"
}
check 'prune takes nothing that a container uses, and no data' prune
cleared() {
  D volume rm v1 v2 v3 v4
  expect 'what Docker has' '' "$(D volume ls -q)"
  expect 'what the pool has' f1 "$(rpc pool_get_volumes '{}' | jq -r '.[].name')"
}
check 'volumes are removed, and with them what the pool had of them' cleared

# --- the same with a target on another machine: its API by TLS ---------------------------------------------------------

# show_certificate FOLDER NAME: the files that the plugin was given are links.
show_certificate() {
  ln -sfn "$1/$2.pem" "$PKI/shown.pem"
  ln -sfn "$1/$2.key" "$PKI/shown.key"
}
# by_tls FOLDER NAME: the plugin again, with this certificate.
by_tls() {
  show_certificate "$@"
  stop plugin
  start_plugin --rpc "tls://$ADDRESS:4421" --tls-ca "$PKI/ca.pem" --tls-cert "$PKI/shown.pem" --tls-key "$PKI/shown.key"
  wait_until 20 plugin_is_up
}
check 'the plugin reaches the target by TLS' by_tls "$PKI" node
tls_life() {
  volume_create -o size=100M t1
  run --rm -v t1:/data box sh -c 'echo by-tls >/data/file'
  expect 'the data' by-tls "$(run --rm -v t1:/data box cat /data/file)"
  volume_create -o from=t1 t2
  expect 'the clone' by-tls "$(run --rm -v t2:/data box cat /data/file)"
  nvmf-docker grow t2 200M
  D volume rm t1 t2
  not_in_pool t1
  no_mounts
}
check 'volumes are made, used, cloned, grown and removed' tls_life
refused_volume() { volume_create -o size=100M t3; }
show_certificate "$PKI/foreign" node
refuse 'with a certificate of another authority Docker says what is wrong' 'valid certificate of an authority' refused_volume
show_certificate "$PKI" other
refuse 'with one that the target does not know, too' 'not of a client that may use this API' refused_volume
show_certificate "$PKI" missing
refuse 'without its file, too' 'shown.pem: cannot be read' refused_volume
tls_heals() {
  not_in_pool t3
  show_certificate "$PKI" node
  refused_volume
  D volume rm t3
}
check 'the right certificate in its place is taken without a restart' tls_heals
by_socket() {
  stop plugin
  start_plugin
  wait_until 20 plugin_is_up
}
check 'and back to the socket' by_socket

# --- nothing is left ----------------------------------------------------------------------------------------------------

COUNT=$((NVMF_SOAK > 1 ? 200 : 20))
# all CMD [ARGS]: runs it for each of the numbers at the same time, with the number in the place of %.
all() {
  local number
  for number in $(seq $COUNT); do "${@//%/$number}" >/dev/null & done
  wait
}
start_one() { run -d --name "c$1" -v "m$1:/data" box sleep 1000; }
write_one() { D exec "c$1" sh -c "echo $1 >/data/x"; }
# counted: descriptors of the plugin and the target, loop devices on FUSE files of this daemon, mounts.
counted() {
  local name
  for name in plugin target; do printf '%s %s\n' $name "$(find "/proc/$(pid $name)/fd" -type l | wc -l)"; done
  printf 'devices %s\n' "$(for name in $(ls "$RUN/by-id" 2>/dev/null) $(cat "$SUITE_TMP/names" 2>/dev/null); do loop_of "$name"; done | sort -u | wc -l)"
  printf 'mounts %s\n' "$(grep -c -e " $SUITE_TMP/" -e ' - fuse.nvmf ' /proc/self/mountinfo)"
}
no_more() { paste "$1" <(counted) | awk '$4 > $2 { print; more = 1 } END { exit more }'; }
memory_kib() { awk '$1 == "RssAnon:" { print $2 }' "/proc/$(pid "$1")/status"; }
many() {
  all volume_create m%
  expect 'volumes' $COUNT "$(rpc pool_get_volumes '{}' | jq 'map(select(.name | startswith("m"))) | length')"
  all start_one %
  expect 'attached' $COUNT "$(ours list --json | jq '.controllers | length')"
  ls "$RUN/by-id" >"$SUITE_TMP/names"
  all write_one %
  all D rm -f c%
  no_mounts
  expect 'data' $COUNT "$(run --rm -v m$COUNT:/data box cat /data/x)"
  all D volume rm m%
  expect 'what the pool has' f1 "$(rpc pool_get_volumes '{}' | jq -r '.[].name')"
  no_mounts
  wait_until 20 no_more "$SUITE_TMP/before"
  printf 'plugin %s KiB, target %s KiB\n' "$(memory_kib plugin)" "$(memory_kib target)" | tee "$SUITE_OUT/memory"
}
# Of the connections that it once needed at the same time dockerd keeps two for its next calls. It needs them when its calls meet, which some do
# not, and both shall be there when it is counted.
two_are_kept() {
  all D volume ls
  [ "$(awk -v path=$PLUGIN '$NF == path && $6 == "03"' /proc/net/unix | wc -l)" -ge 2 ]
}
check 'dockerd keeps two connections' wait_until 20 two_are_kept
counted >"$SUITE_TMP/before"
CHECK_TIMEOUT_S=$((200 * NVMF_SOAK)) check "$COUNT volumes at once" many
PLUGIN_KIB=$(memory_kib plugin)
if [ "$COUNT" = 20 ]; then
  CHECK_TIMEOUT_S=200 check "$COUNT volumes at once, again" many
  no_more_memory() { [ "$(memory_kib plugin)" -le $((PLUGIN_KIB + 4096)) ]; }
  check 'the plugin takes no more memory than after the first time' no_more_memory
fi
leaves() {
  stop dockerd
  stop plugin
  wait_until 20 ended
  expect 'claims' '' "$(ls "$SUITE_TMP/claims/claims")"
  expect 'mounts' '' "$(grep " $STATE/" /proc/self/mountinfo || true)"
  expect 'devices' '' "$(ls "$RUN/by-id" 2>/dev/null)"
}
check 'no mount, device, claim or daemon is left' leaves
