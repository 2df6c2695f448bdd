#!/bin/busybox sh
# The beginning of every init of the testbed: what a Linux needs before it can do anything. The scripts in
# this folder go on from here. Lines that begin with "testbed:" are for xtask.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec < /dev/console > /dev/console 2>&1

for module in $(cat /modules/order); do
    insmod /modules/$module || echo "testbed: cannot load $module"
done

# Seconds since the start.
now() {
    cut -d' ' -f1 /proc/uptime
}

