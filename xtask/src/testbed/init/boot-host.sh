# Init of the emulated host: loads KVM and runs guests.
# judge NAME CODE GUEST_SAYS VMM_SAYS: looks for what both should say in the log of a vmm that ended with CODE.
judge() {
    cat /tmp/log
    if [ $2 -ne 0 ]; then
        echo "testbed: FAIL $1: vmm ended with exit code $2"
    elif ! grep -q "$3" /tmp/log; then
        echo "testbed: FAIL $1: the guest did not say \"$3\""
    elif ! grep -q "$4" /tmp/log; then
        echo "testbed: FAIL $1: vmm did not say \"$4\""
    else
        echo "testbed: pass $1 (host's clock: $begin to $(now) s)"
    fi
}

# start COMMAND END FLAGS...: runs a guest in the background.
start() {
    command=$1 end=$2
    shift 2
    begin=$(now)
    timeout 90 /bin/vmm $command --kernel /guest/bzImage --initrd /guest/initrd \
        --cmdline "console=ttyS0 loglevel=4 panic=-1 end=$end" "$@" > /tmp/log 2>&1 &
}

# check NAME GUEST_SAYS VMM_SAYS END FLAGS...: runs a guest to its end.
check() {
    name=$1 guest_says=$2 vmm_says=$3
    shift 3
    start run "$@"
    wait $!
    judge "$name" $? "$guest_says" "$vmm_says"
}

# await TIMES TEXT: waits until the guest or its vmm has said something that often, or it has ended.
await() {
    while [ $(grep -c "$2" /tmp/log) -lt $1 ] && kill -0 $! 2> /dev/null; do
        sleep 0.2
    done
}

echo "testbed: host is up after $(now) s"
check "power-off, 1 vCPU" "guest: 1 vCPUs, virtio devices: 1" "is powered off" poweroff --rng
check "power-off, 2 vCPUs" "guest: 2 vCPUs, virtio devices: 0" "is powered off" poweroff --vcpus 2
check "kernel panic" "Kernel panic" "the guest's kernel has panicked" panic --on-reboot exit

start run reboot --vcpus 2
await 3 "guest: 2 vCPUs"
kill $!
wait $!
judge "two reboots in place, 2 vCPUs" $? "guest: 2 vCPUs" "started over in place"

start run watchdog --watchdog reset
await 2 "guest: starts its watchdog"
kill $!
wait $!
judge "watchdog" $? "guest: starts its watchdog, wdat_wdt" "did not feed its watchdog in time: it is reset"

start primary button --arbiter /tmp/arbiter --control /tmp/control
await 1 "guest: waits for its power button"
vmm power-button --control /tmp/control
wait $!
judge "power button" $? "guest: waits for its power button, Power Button" "is powered off"

start primary suspend --vcpus 2 --arbiter /tmp/arbiter-2 --control /tmp/control
await 1 "guest: suspends itself"
# Pressed too early, the guest takes it for an ordinary press.
while kill -0 $! 2> /dev/null && ! grep -q "guest: woken" /tmp/log; do
    vmm power-button --control /tmp/control
    sleep 1
done
wait $!
judge "power button of a suspended guest" $? "guest: woken, slept 1 times" "is powered off"
echo "testbed: done"
poweroff -f
