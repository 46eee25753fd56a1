#!/bin/busybox sh
# The VM's init: mounts what a booted Linux has, runs /vmrun.sh, reports its status, powers off.
export PATH=/sbin:/bin:/usr/sbin:/usr/bin HOME=/root
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mkdir -p /dev/pts /dev/shm /dev/net
mount -t devpts devpts /dev/pts
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /tmp
mount -t bpf bpf /sys/fs/bpf
mount -t tracefs trace /sys/kernel/tracing 2>/dev/null
mount -t cgroup2 none /sys/fs/cgroup 2>/dev/null
mkdir -p /run/netns /var/lib
# /dev/net/tun appears with the module.
modprobe tun 2>/dev/null
[ -e /dev/net/tun ] || mknod /dev/net/tun c 10 200
ip link set lo up
echo "VM-BOOTED $(uname -r) after $(cut -d' ' -f1 /proc/uptime) s"
/bin/bash /vmrun.sh
echo "VM-EXIT-CODE:$?"
sync
poweroff -f
