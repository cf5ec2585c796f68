#!/bin/busybox sh
# First program of the outer guest: loads the modules, makes the host's file system visible below
# a writable overlay, and hands over to stage2.sh there.
b=/bin/busybox
$b mount -t proc proc /proc
$b mount -t sysfs sysfs /sys
$b mount -t devtmpfs devtmpfs /dev
die() {
    echo "outer guest: $*" >/dev/ttyS0
    $b reboot -f
}
while read -r module; do
    $b insmod "/modules/$module" 2>/dev/null || echo "outer guest: no module $module"
done </modules.order
share=trans=virtio,version=9p2000.L,msize=1048576
$b mount -t 9p -o "ro,$share,cache=loose" host /host || die "cannot mount the host's file system"
$b mount -t tmpfs -o size=50%,mode=755 upper /upper
$b mkdir -p /upper/files /upper/work
$b mount -t overlay -o lowerdir=/host,upperdir=/upper/files,workdir=/upper/work,index=off,metacopy=off \
    overlay /new || die "cannot lay the overlay"
for directory in dev proc sys run tmp job scratch; do
    $b mkdir -p "/new/$directory"
done
$b mount -t 9p -o "rw,$share,cache=none" job /new/job || die "cannot mount the job directory"
$b mount --move /dev /new/dev
$b mount --move /proc /new/proc
$b mount --move /sys /new/sys
exec $b switch_root /new /bin/bash /job/stage2.sh
