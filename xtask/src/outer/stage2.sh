#!/bin/bash
# Second program of the outer guest: makes it look like an ordinary machine, runs /job/job.sh with
# its output on the port `output`, and tells the port `status` how it went.
exec </dev/null >/dev/ttyS0 2>&1
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts -o mode=620,gid=5,ptmxmode=666
mount -t tmpfs shm /dev/shm -o mode=1777
mount -t tmpfs run /run -o mode=755
mount -t cgroup2 cgroup /sys/fs/cgroup
for controller in cpu memory pids; do
    echo "+$controller" >/sys/fs/cgroup/cgroup.subtree_control
done
ln -sfn /proc/self/fd /dev/fd
ln -sfn /proc/self/fd/0 /dev/stdin
ln -sfn /proc/self/fd/1 /dev/stdout
ln -sfn /proc/self/fd/2 /dev/stderr
/bin/busybox ip link set lo up
/bin/busybox hostname outer
ulimit -n 65536

# Big and writable: a disk. /tmp stays the machine's: the tree may lie below it.
mount -t ext4 -o noatime /dev/vda /scratch
chmod 755 /scratch
mkdir -p /scratch/tmp /scratch/home/root /scratch/home/tester /scratch/home/stranger
chmod 1777 /scratch/tmp

# Two ordinary users: one may use KVM, one may not.
getent group kvm >/dev/null || echo 'kvm:x:2999:' >>/etc/group
sed -i -e '/^tester:/d' -e '/^stranger:/d' /etc/passwd /etc/group
sed -i -e '/^kvm:/s/\(:[^:]*\)$/\1,tester/' -e '/^kvm:/s/:,/:/' /etc/group
echo 'tester:x:1001:1001::/scratch/home/tester:/bin/bash' >>/etc/passwd
echo 'stranger:x:1002:1002::/scratch/home/stranger:/bin/bash' >>/etc/passwd
echo 'tester:x:1001:' >>/etc/group
echo 'stranger:x:1002:' >>/etc/group
chown 1001:1001 /scratch/home/tester
chown 1002:1002 /scratch/home/stranger
chgrp kvm /dev/kvm
chmod 660 /dev/kvm
chmod 666 /dev/net/tun

. /job/guest.env
version=$(uname -r)
rm -rf "/lib/modules/$version"
mkdir -p /lib/modules
ln -sfn "$OUTER_MODULES" "/lib/modules/$version"
for port in /sys/class/virtio-ports/*; do
    ln -sfn "/dev/${port##*/}" "/run/port-$(cat "$port/name")"
done
# What comes there is there for its interrupts.
cat </run/port-pulse >/dev/null &
exec 9>/run/port-status
echo "ready $(cut -d' ' -f1 /proc/uptime)" >&9
cd /
HOME=/scratch/home/root TMPDIR=/scratch/tmp setsid /bin/bash /job/job.sh >/run/port-output 2>&1 9>&-
echo "exit $?" >&9
timeout 5 sync
/bin/busybox reboot -f
