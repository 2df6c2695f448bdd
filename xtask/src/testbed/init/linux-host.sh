# Init of the emulated host: boots the Linux guest image with both of Debian's kernels, root on virtio-blk, one
# after the other on the same disk.
# check NAME KERNEL END "LINES, ONE EACH" FLAGS...: runs a guest; it or vmm must say each of the lines.
check() {
    name=$1 kernel=$2 end=$3 says=$4
    shift 4
    begin=$(now)
    timeout 300 /bin/vmm run --on-reboot exit --kernel /guest/$kernel --initrd /guest/$kernel.initrd --memory-mib 256 \
        --drive path=/dev/vda --rng --cmdline "console=ttyS0 loglevel=5 panic=-1 root=/dev/vda $end" "$@" > /tmp/log 2>&1
    code=$?
    cat /tmp/log
    verdict="pass $name (host's clock: $begin to $(now) s; guest: $(sed -n 's/.*understudy: \(up after [0-9.]* s\).*/\1/p' /tmp/log))"
    [ $code -eq 0 ] || verdict="FAIL $name: vmm ended with exit code $code"
    while read -r line; do
        grep -q "$line" /tmp/log || verdict="FAIL $name: nobody said \"$line\""
    done << END
$says
END
    # After a crash the superblock's counts are put right, without a word. Anything that is told was damage.
    ! grep "understudy: fsck says: " /tmp/log | grep -v "recovering journal" | grep -qv " files" \
        || verdict="FAIL $name: the file system was damaged"
    ! grep -q "XSAVE consistency problem" /tmp/log || verdict="FAIL $name: the guest complains about XSAVE"
    echo "testbed: $verdict"
}

echo "testbed: host is up after $(now) s"
check "cloud kernel, kernel panic" cloud "understudy.services=redis,fsync understudy.end=panic" \
    "understudy: ready: redis
understudy: ready: fsync
1 vCPUs, Linux .*cloud
Kernel panic
asked for a reboot"
check "cloud kernel, power-off" cloud "understudy.services=web,redis understudy.fsck=full understudy.end=poweroff" \
    "recovering journal
understudy: fsck: \\(clean\\|repaired\\)
understudy: root file system is read-only
is powered off" --vcpus 2
check "generic kernel, reboot" generic "understudy.services=stream,shell understudy.end=reboot" \
    "understudy: fsck: clean
understudy: ready: shell
2 vCPUs, Linux .*amd64
understudy: root file system is read-only
asked for a reboot" --vcpus 2
check "generic kernel, power-off" generic "understudy.services=fsync understudy.fsck=full understudy.end=poweroff" \
    "understudy: fsck: clean
understudy: ready: fsync
1 vCPUs, Linux .*amd64
is powered off"
echo "testbed: done"
poweroff -f
