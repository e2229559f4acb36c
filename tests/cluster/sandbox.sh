#!/bin/bash
# sandbox.sh COMMAND...: run a command in network, mount, PID, IPC and UTS namespaces of its own, with
# its own /tmp and /run. However the command or this script ends, the kernel removes all processes,
# bridges, mounts and files of the pretend cluster. If namespaces are not available,
# OTR_CLUSTER_SKIP holds the reason.
root=$(cd "$(dirname "$0")/../.." && pwd)
export OTR_CLUSTER_SKIP=
for tool in ip nsenter rsync setpriv ssh ssh-keygen sshd sshfs unshare; do
  PATH=$PATH:/usr/sbin command -v $tool >/dev/null || OTR_CLUSTER_SKIP+="$tool is not installed; "
done
new=(unshare --net --mount --pid --ipc --uts --fork --mount-proc --kill-child=KILL)
why=$("${new[@]}" ip link add test type bridge 2>&1) || OTR_CLUSTER_SKIP+="namespaces are not available: $why"
[ -e /dev/fuse ] || OTR_CLUSTER_SKIP+="/dev/fuse does not exist"
[ -z "$OTR_CLUSTER_SKIP" ] || exec "$@"
# The outer shell is PID 1: it reaps orphans of the command and ends with the command.
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
