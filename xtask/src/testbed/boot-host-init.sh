#!/bin/busybox sh
# Init of the emulated host: loads KVM and runs guests. Lines that begin with "testbed:" are for xtask.
/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mount -t tmpfs tmp /tmp
exec < /dev/console > /dev/console 2>&1

for module in $(cat /modules/order); do
    insmod /modules/$module
done

now() {
    cut -d' ' -f1 /proc/uptime
}

# check NAME GUEST_SAYS VMM_SAYS END FLAGS...: runs a guest and looks for what both should say.
check() {
    name=$1 guest_says=$2 vmm_says=$3 end=$4
    shift 4
    begin=$(now)
    timeout 60 /bin/vmm run --kernel /guest/bzImage --initrd /guest/initrd \
        --cmdline "console=ttyS0 loglevel=4 panic=-1 end=$end" "$@" > /tmp/log 2>&1
    code=$?
    cat /tmp/log
    if [ $code -ne 0 ]; then
        echo "testbed: FAIL $name: vmm ended with exit code $code"
    elif ! grep -q "$guest_says" /tmp/log; then
        echo "testbed: FAIL $name: the guest did not say \"$guest_says\""
    elif ! grep -q "$vmm_says" /tmp/log; then
        echo "testbed: FAIL $name: vmm did not say \"$vmm_says\""
    else
        echo "testbed: pass $name (host's clock: $begin to $(now) s)"
    fi
}

echo "testbed: host is up after $(now) s"
check "power-off, 1 vCPU" "guest: 1 vCPUs, virtio devices: 1" "powered itself off" poweroff --rng
check "power-off, 2 vCPUs" "guest: 2 vCPUs, virtio devices: 0" "powered itself off" poweroff --vcpus 2
check "reboot, 2 vCPUs" "guest: 2 vCPUs" "asked for a reboot" reboot --vcpus 2
check "kernel panic" "Kernel panic" "asked for a reboot" panic
echo "testbed: done"
poweroff -f
