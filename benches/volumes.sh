#!/bin/bash
# volumes.sh - what it takes to attach, make and use volumes of containers on this machine: a target with a pool on an XFS made for this, the
# initiator's daemon, the Docker plugin, and a dockerd of its own. Needs root. Prints tables in Markdown.
#
#   benches/volumes.sh [attach] [docker] [fio]      all parts, or those named; docker and fio need Debian's docker.io
#
# Environment: BENCH_DIR where the file system's image goes (default /var/tmp), BENCH_ROUNDS (default 10), BENCH_SECONDS of each fio run
# (default 3), BENCH_ROWS, the rows of fio's table, such as "4k randread QD32,128k read QD8" (default all), BENCH_NO_BUILD=1 to measure the programs that are there, BENCH_BLOCK, the form of devices (default auto),
# CARGO_TARGET_DIR as cargo has it.
# Exit: 0 measured, whatever the figures are; 1 something could not be run.
set -euo pipefail
cd "$(dirname "$0")/.."
# shellcheck source=benches/xfs.sh
. benches/xfs.sh
[ "$(id -u)" = 0 ] || { echo "volumes: mounting needs root" >&2; exit 1; }
if [ -z "${OWN_MOUNTS:-}" ]; then
  [ -n "${BENCH_NO_BUILD:-}" ] || cargo build --release --locked -p nvmf-target -p nvmf-initiator -p nvmf-docker
  # Mounts of its own: /run/docker is this run's alone, and what is left after a failure ends with it.
  OWN_MOUNTS=1 exec unshare --mount "$0" "$@"
fi
parts=("$@")
[ $# != 0 ] || parts=(attach docker fio)
for tool in python3 mkfs.xfs mkfs.ext4; do
  command -v "$tool" >/dev/null || { echo "volumes: $tool is missing: apt-get install python3 xfsprogs e2fsprogs" >&2; exit 1; }
done
bin=$(realpath "${CARGO_TARGET_DIR:-target}/release")
work=$(mktemp -d "${BENCH_DIR:-/var/tmp}/nvmf-volumes-bench.XXXXXX")
cleanup() {
  local name process at
  [ ! -S "$work/docker/sock" ] || timeout 60 docker -H "unix://$work/docker/sock" ps -qa 2>/dev/null | xargs -r timeout 60 docker -H "unix://$work/docker/sock" rm -f >/dev/null 2>&1 || true
  for name in dockerd plugin; do
    [ ! -s "$work/$name.pid" ] || { kill "$(cat "$work/$name.pid")" 2>/dev/null && tail --pid="$(cat "$work/$name.pid")" -f /dev/null; } || true
  done
  for process in $(pgrep -f -- "$work/docker/" || true); do kill -KILL "$process" 2>/dev/null || true; done
  awk -v at="$work/" 'index($5, at) == 1 { print $5 }' /proc/self/mountinfo | grep -v "^$work/mnt\$" | tac | while read -r at; do umount --lazy "$at"; done || true
  timeout 60 "$bin/nvmf-initiator" --run-dir "$work/run" disconnect --all --force >/dev/null 2>&1 || true
  # The keeper ends with its daemon, which ends in order.
  for process in $(pgrep -f -- "[-]-run-dir $work/run daemon" || true); do kill "$process" 2>/dev/null && tail --pid="$process" -f /dev/null || true; done
  [ ! -s "$work/target.pid" ] || { kill "$(cat "$work/target.pid")" 2>/dev/null && tail --pid="$(cat "$work/target.pid")" -f /dev/null; } || true
  unmount_xfs
  rm -rf "$work"
}
trap cleanup EXIT

mount_xfs 24G
mkdir -p "$work/bin" "$work/docker" /run/docker
mount -t tmpfs none /run/docker
cat >"$work/t.toml" <<TOML
listen = ["tcp://127.0.0.1:0"]
[api]
socket = "$work/rpc.sock"
state-dir = "$work/state"
[pool.p]
path = "$work/mnt"
nqn-prefix = "nqn.2025-01.org.example"
overcommit = "allow"
TOML
# run NAME CMD: a daemon, its output in a file.
run() {
  local name=$1
  shift
  "$@" >"$work/$name.log" 2>&1 </dev/null &
  echo $! >"$work/$name.pid"
}
# await PATH: until it is there.
await() {
  for _ in $(seq 2000); do
    [ ! -e "$1" ] || return 0
    sleep 0.01
  done
  echo "volumes: $1 does not appear" >&2
  tail -n 5 "$work"/*.log >&2
  return 1
}
run target "$bin/nvmf-target" --config "$work/t.toml" --log warn --ready-file "$work/ready"
await "$work/ready"
# How long mkfs takes is not ours, and is measured apart: the plugin finds this first.
cat >"$work/bin/mkfs.ext4" <<'WRAPPER'
#!/bin/bash
begin=${EPOCHREALTIME/[.,]/}
PATH=${PATH#*:} mkfs.ext4 "$@"
status=$?
echo $((${EPOCHREALTIME/[.,]/} - begin)) >>"${0%/*}/mkfs.us"
exit $status
WRAPPER
chmod +x "$work/bin/mkfs.ext4"
host=(--hostnqn nqn.2025-01.org.example:bench --hostid 7a3f2f0e-92a5-4a4c-8d3c-0f2c31b5a9d1)
PATH=$work/bin:$PATH run plugin "$bin/nvmf-docker" serve --state-dir "$work/plugin" --run-dir "$work/claims" --rpc "$work/rpc.sock" "${host[@]}" \
  --initiator "$bin/nvmf-initiator" --initiator-run-dir "$work/run" --block "${BENCH_BLOCK:-auto}"
await /run/docker/plugins/nvmf.sock
case " ${parts[*]} " in
  *" docker "* | *" fio "*)
    command -v dockerd >/dev/null || { echo "volumes: dockerd is missing: apt-get install docker.io" >&2; exit 1; }
    run dockerd dockerd --data-root "$work/docker/data" --exec-root "$work/docker/exec" --pidfile "$work/docker/pid" -H "unix://$work/docker/sock" \
      --iptables=false --ip6tables=false --bridge=none
    await "$work/docker/sock"
    # An image of links: the programs are this machine's, and so are the same ones inside and outside.
    mkdir -p "$work/image-root"/{usr,data,tmp}
    for name in bin lib lib64 sbin; do ln -s "usr/$name" "$work/image-root/$name"; done
    tar -C "$work/image-root" -c . | docker -H "unix://$work/docker/sock" import - box >/dev/null
    ;;
esac
python3 benches/volumes.py "$work" "$bin" "${parts[@]}"
