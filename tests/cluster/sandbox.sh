#!/bin/bash
# sandbox.sh COMMAND...: runs it in network, mount, PID, IPC and UTS namespaces of its own, /tmp and
# /run included. However it ends, and this script with it, the kernel removes every process, bridge,
# mount and file of the pretend cluster. Where that can't be, OTR_CLUSTER_SKIP says why.
root=$(cd "$(dirname "$0")/../.." && pwd)
export OTR_CLUSTER_SKIP=
for tool in ip nsenter rsync setpriv ssh ssh-keygen sshd sshfs unshare; do
  PATH=$PATH:/usr/sbin command -v $tool >/dev/null || OTR_CLUSTER_SKIP+="no $tool here; "
done
new=(unshare --net --mount --pid --ipc --uts --fork --mount-proc --kill-child=KILL)
why=$("${new[@]}" ip link add test type bridge 2>&1) || OTR_CLUSTER_SKIP+="no namespaces here: $why"
[ -e /dev/fuse ] || OTR_CLUSTER_SKIP+="no /dev/fuse here"
[ -z "$OTR_CLUSTER_SKIP" ] || exec "$@"
# The outer shell is PID 1 and outlives the command by nothing; it reaps what the command orphans.
exec setpriv --pdeathsig KILL "${new[@]}" bash -c '
  root=$1; shift
  hostname launcher && ip link set lo up || exit 1
  mount -t tmpfs run /run
  stage=/run/tmp && mkdir $stage && mount -t tmpfs -o mode=1777 tmp $stage
  case $root/ in /tmp/*) mkdir -p $stage${root#/tmp} && mount --rbind "$root" "$stage${root#/tmp}";; esac
  mount --rbind $stage /tmp && cd "$root" || exit 1
  export HOME=/tmp/home PATH=$PATH:/usr/sbin:/sbin
  mkdir $HOME
  "$@"; exit $?' sandbox "$root" "$@"
