# Init of one of two hosts: networks, disk, shared directory, and a shell for the tester.
# The kernel hands "number" and "disk" of its command line on as variables.
mkdir -p /data /run /shared
[ "$number" = 11 ] && hostname host-a || hostname host-b

# The guest's network: a bridge over the service network, with a tap for the guest.
ip link set lo up
brctl addbr br0
tunctl -t tap0 > /dev/null
for interface in eth0 tap0; do
    brctl addif br0 $interface
    ip link set $interface up
done
ip addr add 10.77.0.$number/24 dev br0
ip link set br0 up
# The logging channel, storage and the tester's network.
for network in 1 2 3; do
    ip addr add 10.$((77 + network)).0.$number/24 dev eth$network
    ip link set eth$network up
done

mount -t ext4 /dev/vda /data || echo "testbed: no /data"
mount -t nfs4 -o vers=4.2,hard,timeo=50,addr=10.79.0.1,clientaddr=10.79.0.$number 10.79.0.1:/shared /shared \
    || echo "testbed: no /shared"
# What vmm says and what its guest says go out at once, so that a power failure loses nothing of it.
stty -F /dev/ttyS1 raw -echo
stty -F /dev/ttyS2 raw -echo
echo "testbed: up after $(now) s"
while true; do
    nc -ll -p 7 -e /bin/sh
done
