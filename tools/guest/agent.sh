#!/bin/bash
# agent.sh: what a guest runs that a suite on this machine commands (machines.sh): each /out/jobs/NAME.job that appears is a script, run at
# once beside those that still run; NAME.out gets its output and NAME.code, once it ended, its exit code. /out/jobs/end ends the guest.
# shellcheck source=lib.sh
. "$GUEST_LIB"
mkdir -p /out/jobs
exec {nothing}<> <(:)
: >/out/jobs/ready
until [ -e /out/jobs/end ]; do
  for job in /out/jobs/*.job; do
    [ -e "$job" ] || continue
    name=${job%.job}
    mv "$job" "$name.sh"
    {
      # shellcheck source=/dev/null
      (set -euo pipefail && . "$name.sh") >"$name.out" 2>&1 </dev/null
      echo $? >"$name.ended"
      mv "$name.ended" "$name.code"
    } &
  done
  read -r -t 0.02 -u "$nothing" || true
done
