# Init of the web guest: a file over HTTP and a shell over TCP. The kernel hands "address" and "lines" of its
# command line on as variables.
ip link set lo up
ip addr add $address dev eth0
ip link set eth0 up
mkdir /www
seq 1 $lines > /www/numbers
httpd -h /www
echo "guest: ready, $(grep -c ^processor /proc/cpuinfo) vCPUs"
while true; do
    nc -ll -p 9000 -e /bin/sh
done
