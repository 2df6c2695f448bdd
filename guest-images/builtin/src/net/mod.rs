//! The guest on the network: one card, one address, the services of the command line.

mod counter;
mod device;
mod echo;
mod service;
mod stream;

use crate::{dirty, log, virtio};
use alloc::format;
use alloc::vec;
use alloc::vec::Vec;
use counter::Counter;
use device::NetDevice;
use echo::Echo;
use service::{Pass, Service, Sizes};
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, HardwareAddress, IpCidr, Ipv4Cidr};
use stream::{Stream, StreamShared};
use understudy_workload::http::Status;
use understudy_workload::options::Options;
use understudy_workload::{COUNTER_CONNECTIONS_MAX, ECHO_CONNECTIONS_MAX, STREAM_CONNECTIONS_MAX};
use understudy_workload::{COUNTER_PORT, ECHO_PORT, STREAM_PORT};
use virtio_drivers::transport::DeviceType;

/// The network stack's clock runs this much faster than real time.
///
/// smoltcp retransmits after one second at the earliest, a constant. After a failover, when the frames
/// in flight are lost, that second would be an outage of its own. With its clock at five times real
/// time the least timeout is 200 ms, the same as Linux's. Everything else it times (delayed
/// acknowledgements, ARP ages, TIME-WAIT) becomes shorter as well, which nothing here minds.
pub(crate) const TCP_CLOCK_SPEED: u64 = 5;

/// How long a full transmit ring is waited for if the card says nothing.
const STARVED_NS: u64 = 1_000_000;

/// Connections more than promised, for those that are still closing.
const SPARE: usize = 8;

const STREAM_SIZES: Sizes = Sizes {
    connections: STREAM_CONNECTIONS_MAX + SPARE,
    receive_bytes: 4096,
    // 2 MB/s with acknowledgements 40 ms late needs 80 KB.
    transmit_bytes: 128 * 1024,
};
const COUNTER_SIZES: Sizes = Sizes {
    connections: COUNTER_CONNECTIONS_MAX + SPARE,
    receive_bytes: 8192,
    transmit_bytes: 8192,
};
const ECHO_SIZES: Sizes = Sizes {
    connections: ECHO_CONNECTIONS_MAX + SPARE,
    receive_bytes: 64 * 1024,
    transmit_bytes: 64 * 1024,
};

/// The network side of the guest.
pub(crate) struct Network {
    device: NetDevice,
    interface: Interface,
    sockets: SocketSet<'static>,
    stream: Option<Service<Stream>>,
    counter: Option<Service<Counter>>,
    echo: Option<Service<Echo>>,
    next_ns: Option<u64>,
    vcpus: usize,
}

fn stack_time(now_ns: u64) -> Instant {
    Instant::from_micros((now_ns * TCP_CLOCK_SPEED / 1000) as i64)
}

impl Network {
    /// Starts the first network card of the command line; `None` (with a line on the console) if
    /// there is none that works.
    pub(crate) fn start(options: &Options, seed: u64, now_ns: u64) -> Option<Self> {
        let Some((place, transport)) = virtio::find(options, DeviceType::Network) else {
            log!("net: no network card");
            return None;
        };
        let mut device = match NetDevice::new(transport) {
            Ok(device) => device,
            Err(error) => {
                log!("net: the card at {place} does not start: {error}");
                return None;
            }
        };
        let mac = device.mac_address();
        let mut config = Config::new(HardwareAddress::Ethernet(EthernetAddress(mac)));
        config.random_seed = seed;
        let mut interface = Interface::new(config, &mut device, stack_time(now_ns));
        interface.update_ip_addrs(|addresses| {
            let address = IpCidr::Ipv4(Ipv4Cidr::new(options.ip, options.prefix_bits));
            let _ = addresses.push(address); // the list is empty and takes two
        });
        if let Some(gateway) = options.gateway {
            let _ = interface.routes_mut().add_default_ipv4_route(gateway);
        }
        virtio::route_interrupt(&place);
        log!(
            "net: {} {}/{}",
            EthernetAddress(mac),
            options.ip,
            options.prefix_bits
        );
        let mut sockets = SocketSet::new(vec![]);
        let workloads = options.workloads;
        let shared = StreamShared {
            rate: options.stream_rate,
            status_wanted: false,
            status: None,
        };
        let stream = workloads
            .stream
            .then(|| Service::new(&mut sockets, STREAM_PORT, &STREAM_SIZES, shared));
        let counter = workloads.counter.then(|| {
            Service::new(
                &mut sockets,
                COUNTER_PORT,
                &COUNTER_SIZES,
                Default::default(),
            )
        });
        let echo = workloads
            .echo
            .then(|| Service::new(&mut sockets, ECHO_PORT, &ECHO_SIZES, ()));
        let vcpus = usize::from(options.nr_cpus);
        let mut network = Self {
            device,
            interface,
            sockets,
            stream,
            counter,
            echo,
            next_ns: None,
            vcpus,
        };
        network.poll(now_ns); // the sockets listen from here on
        for (on, name, port) in [
            (workloads.stream, "stream", STREAM_PORT),
            (workloads.counter, "counter", COUNTER_PORT),
            (workloads.echo, "echo", ECHO_PORT),
        ] {
            if on {
                log!("ready: {name} {}:{port}", options.ip);
            }
        }
        Some(network)
    }

    /// Moves frames and serves all connections until nothing more can be done at once.
    pub(crate) fn poll(&mut self, now_ns: u64) {
        let now = stack_time(now_ns);
        let mut pass;
        loop {
            self.interface
                .poll(now, &mut self.device, &mut self.sockets);
            pass = self.serve(now_ns);
            if !pass.progress {
                break;
            }
        }
        self.device.kick();
        let stack_ns = self
            .interface
            .poll_at(now, &self.sockets)
            .map(|at| (at.total_micros().max(0) as u64).saturating_mul(1000) / TCP_CLOCK_SPEED);
        // A full ring cannot be helped by looking again at once: the card says when there is room.
        let least_ns = if self.device.is_starved() {
            now_ns + STARVED_NS
        } else {
            0
        };
        let stack_ns = stack_ns.map(|at_ns| at_ns.max(least_ns));
        self.next_ns = pass
            .and(Pass {
                progress: false,
                next_ns: stack_ns,
            })
            .next_ns;
    }

    /// When to poll even if nothing comes in.
    pub(crate) fn next_ns(&self) -> Option<u64> {
        self.next_ns
    }

    /// Whether the card has something for us.
    pub(crate) fn has_work(&self) -> bool {
        self.device.has_work()
    }

    /// Prepares for sleep: false if the card has something for us already.
    pub(crate) fn may_sleep(&self) -> bool {
        self.device.may_sleep()
    }

    /// The end of sleep.
    pub(crate) fn wake(&self) {
        self.device.wake();
    }

    fn serve(&mut self, now_ns: u64) -> Pass {
        let sockets = &mut self.sockets;
        let mut pass = Pass::default();
        if let Some(counter) = &mut self.counter {
            pass = pass.and(counter.serve(sockets, now_ns));
        }
        if let Some(echo) = &mut self.echo {
            pass = pass.and(echo.serve(sockets, now_ns));
        }
        let wanted = self
            .stream
            .as_mut()
            .is_some_and(|stream| stream.shared().status_wanted);
        let status = wanted.then(|| self.status(now_ns));
        if let Some(stream) = &mut self.stream {
            stream.shared().status_wanted = false;
            stream.shared().status = status;
            pass = pass.and(stream.serve(&mut self.sockets, now_ns));
        }
        pass
    }

    fn status(&self, now_ns: u64) -> alloc::string::String {
        let echo_bytes: Vec<u64> = self
            .echo
            .iter()
            .flat_map(Service::open)
            .map(|echo| echo.bytes)
            .collect();
        let open_connections = self.stream.iter().flat_map(Service::open).count()
            + self.counter.iter().flat_map(Service::open).count()
            + echo_bytes.len();
        let dirty_iterations = dirty::iterations();
        let status = Status {
            uptime_ms: now_ns / 1_000_000,
            dirty_iterations: &dirty_iterations[..self.vcpus],
            open_connections,
            echo_bytes: &echo_bytes,
        };
        format!("{status}")
    }
}
