# Init of the guest inside the emulated host: says what it found, then ends as the command line asks.
echo "guest: $(grep -c ^processor /proc/cpuinfo) vCPUs, virtio devices: $(ls /sys/bus/virtio/devices | wc -l)"

case "$(cat /proc/cmdline)" in
*end=poweroff*) poweroff -f ;;
*end=reboot*) reboot -f ;;
*end=watchdog*)
    # Feeds it far too seldom.
    echo "guest: starts its watchdog, $(cat /sys/class/watchdog/watchdog0/identity)"
    watchdog -F -T 4 -t 1000 /dev/watchdog0
    ;;
*end=button*)
    # The driver's first event is the key that is pressed.
    echo "guest: waits for its power button, $(cat /sys/class/input/event0/device/name)"
    dd if=/dev/input/event0 of=/dev/null bs=24 count=1 && poweroff -f
    ;;
*end=suspend*)
    echo "guest: suspends itself"
    echo freeze > /sys/power/state
    echo "guest: woken, slept $(cat /sys/power/suspend_stats/success) times"
    poweroff -f
    ;;
esac
# An init that ends makes the kernel panic.
