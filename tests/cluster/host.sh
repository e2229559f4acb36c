#!/bin/bash
# host.sh NAME RIG STORAGE DIRECTORY...: run as PID 1 of a pretend host, in namespaces of its own.
# The host's disk holds the system, the DIRECTORYs (read-only) and nothing else of this machine. Its
# home is RIG/homes/NAME, which survives a power-off. STORAGE is USER@HOST:PATH; empty on the storage
# host itself.
set -eu
name=$1 rig=$2 storage=$3; shift 3
hostname "$name"
disk=$rig/disks/$name
mkdir -p "$disk" "$rig/homes/$name"
mount -t tmpfs -o mode=755 "$name" "$disk"
cd "$disk"
mkdir -p dev etc home mnt/otr old opt proc root run/sshd srv sys tmp usr var/{empty,lib,log,tmp}
chmod 1777 tmp var/tmp
for top in bin lib lib32 lib64 sbin; do
  if [ -L /$top ]; then cp -P /$top .; elif [ -d /$top ]; then mkdir $top; mount --bind /$top $top; fi
done
mount --bind /usr usr
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 shm dev/shm
mount --rbind /sys sys
mount -t proc proc proc
cp -a /etc .
cp "$rig/hosts" etc/hosts
mount --bind "$rig/homes/$name" root
for directory; do
  mkdir -p ".$directory"
  mount --bind "$directory" ".$directory"
  mount -o remount,bind,ro ".$directory"
done
if [ -z "$storage" ]; then mount --bind "$rig/storage" srv; fi
cp "$rig"/{key,key.pub,hostkey} run/
pivot_root . old
umount -l /old
cp -rn /etc/skel/. /root
mkdir -p /root/.ssh
install -m 600 /run/key.pub /root/.ssh/authorized_keys
cat > /run/sshd_config <<C
HostKey /run/hostkey
PidFile none
PermitRootLogin prohibit-password
PasswordAuthentication no
UsePAM no
UseDNS no
MaxStartups 100
MaxSessions 100
Subsystem sftp internal-sftp
C
if [ -n "$storage" ]; then
  sshfs "$storage" /mnt/otr -o IdentityFile=/run/key,StrictHostKeyChecking=no,dir_cache=no \
    -o UserKnownHostsFile=/dev/null,LogLevel=ERROR,attr_timeout=1,entry_timeout=1,allow_other
fi
exec env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LANG=C.UTF-8 /usr/sbin/sshd -D -e -f /run/sshd_config
