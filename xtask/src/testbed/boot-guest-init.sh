#!/bin/busybox sh
# Init of the guest inside the emulated host: says what it found, then ends as the command line asks.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
exec < /dev/console > /dev/console 2>&1

for module in $(cat /modules/order); do
    insmod /modules/$module
done
echo "guest: $(grep -c ^processor /proc/cpuinfo) vCPUs, virtio devices: $(ls /sys/bus/virtio/devices | wc -l)"

case "$(cat /proc/cmdline)" in
*end=poweroff*) poweroff -f ;;
*end=reboot*) reboot -f ;;
esac
# An init that ends makes the kernel panic.
