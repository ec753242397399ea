#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
#
# Boots a root directory: systemd as PID 1 of new namespaces, on an overlay in memory that ends with it.
# For tests/systemd/harness.py, which calls it in a mount namespace of its own, and kills it:
#
#   boot.sh ROOT CGROUP      in an empty directory; prints "booting" when all that may be impossible is done
#
# What could change the machine that this runs on is out of reach: its network, devices, sysctls and cgroups.

set -eu
if [ "$0" != inner ]; then
    mount -t tmpfs tmpfs . && cd "$PWD" # to what is mounted there
    mkdir cgroup upper work root
    mount -t cgroup2 cgroup2 cgroup
    mkdir "cgroup/$2"
    echo $$ >"cgroup/$2/cgroup.procs"
    # shellcheck disable=SC2093 # the rest is for the one that is executed
    exec setpriv --pdeathsig KILL unshare --cgroup --pid --fork --uts --ipc --net --mount --kill-child=KILL \
        sh -c "$(cat "$0")" inner "$@"
fi
umount --lazy cgroup
mount -t overlay -o "lowerdir=$1,upperdir=upper,workdir=work" overlay root
cd root
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,bind,ro proc/sys
mount -t sysfs sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
mkdir dev/pts dev/shm
while read -r name major minor; do
    mknod -m 666 "dev/$name" c "$major" "$minor"
done <<DEVICES
null 1 3
zero 1 5
full 1 7
random 1 8
urandom 1 9
tty 5 0
fuse 10 229
autofs 10 235
DEVICES
: <dev/null
ln -s /proc/self/fd dev/fd
ln -s pts/ptmx dev/ptmx
mount -t devpts -o newinstance,ptmxmode=666,mode=620 devpts dev/pts
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mount -t tmpfs tmpfs tmp
# Of no use here, or about the machine below.
for unit in systemd-sysctl.service systemd-modules-load.service modprobe@.service systemd-tmpfiles-setup-dev.service \
    systemd-tmpfiles-setup-dev-early.service systemd-journald-audit.socket sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount dev-hugepages.mount dev-mqueue.mount getty.target \
    apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer; do
    ln -s /dev/null "etc/systemd/system/$unit"
done
mkdir run/old
pivot_root . run/old
umount --lazy /run/old
rmdir /run/old
echo booting
exec env -i container=rofs PATH=/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 /lib/systemd/systemd --system
