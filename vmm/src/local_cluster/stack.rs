//! The clients' TCP/IP stack (smoltcp), attached to the switch's local side.

use std::collections::VecDeque;
use std::time::Instant as StdInstant;

use smoltcp::iface::{Config, Interface, SocketHandle, SocketSet};
use smoltcp::phy::{Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::socket::tcp;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpAddress, IpCidr, Ipv4Address};

use super::switch::EthernetSwitch;

const MAC: EthernetAddress = EthernetAddress([0x02, 0, 0, 0, 0, 1]);
const MTU_BYTES: usize = 1514;
const RECEIVE_BYTES: usize = 256 * 1024;
const SEND_BYTES: usize = 4 * 1024;
const FIRST_PORT: u16 = 49_152;

pub(super) struct Stack {
    interface: Interface,
    pub(super) sockets: SocketSet<'static>,
    wire: Wire,
    origin: StdInstant,
    next_port: u16,
}

/// Frames between the stack and the switch.
#[derive(Default)]
struct Wire {
    received: VecDeque<Vec<u8>>,
    sent: VecDeque<Vec<u8>>,
}

impl Stack {
    pub(super) fn new(address: Ipv4Address, prefix_bits: u8) -> Self {
        let mut wire = Wire::default();
        let mut config = Config::new(MAC.into());
        config.random_seed = rand::random();
        let mut interface = Interface::new(config, &mut wire, Instant::ZERO);
        interface.update_ip_addrs(|addresses| {
            // The list is empty and has room for at least one.
            let _ = addresses.push(IpCidr::new(IpAddress::Ipv4(address), prefix_bits));
        });
        Self {
            interface,
            sockets: SocketSet::new(Vec::new()),
            wire,
            origin: StdInstant::now(),
            next_port: FIRST_PORT,
        }
    }

    /// Opens a connection; it is established some polls later.
    pub(super) fn connect(
        &mut self,
        address: Ipv4Address,
        port: u16,
    ) -> Result<SocketHandle, tcp::ConnectError> {
        let buffer = |bytes| tcp::SocketBuffer::new(vec![0; bytes]);
        let mut socket = tcp::Socket::new(buffer(RECEIVE_BYTES), buffer(SEND_BYTES));
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        socket.connect(self.interface.context(), (address, port), self.next_port)?;
        self.next_port = self.next_port.checked_add(1).unwrap_or(FIRST_PORT);
        Ok(self.sockets.add(socket))
    }

    /// Exchanges frames with the switch and lets the stack work.
    pub(super) fn poll(&mut self, switch: &mut EthernetSwitch) {
        while let Some(frame) = switch.receive_local() {
            self.wire.received.push_back(frame);
        }
        let now = self.now();
        self.interface.poll(now, &mut self.wire, &mut self.sockets);
        while let Some(frame) = self.wire.sent.pop_front() {
            switch.send_local(frame);
        }
    }

    /// How long the stack has nothing to do by itself.
    pub(super) fn poll_delay(&mut self) -> Option<std::time::Duration> {
        let now = self.now();
        self.interface
            .poll_delay(now, &self.sockets)
            .map(Into::into)
    }

    fn now(&self) -> Instant {
        Instant::from_micros(i64::try_from(self.origin.elapsed().as_micros()).unwrap_or(i64::MAX))
    }
}

impl Device for Wire {
    type RxToken<'a> = Received;
    type TxToken<'a> = Sending<'a>;

    fn receive(&mut self, _: Instant) -> Option<(Received, Sending<'_>)> {
        let frame = self.received.pop_front()?;
        Some((Received(frame), Sending(&mut self.sent)))
    }

    fn transmit(&mut self, _: Instant) -> Option<Sending<'_>> {
        Some(Sending(&mut self.sent))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = MTU_BYTES;
        capabilities
    }
}

struct Received(Vec<u8>);

impl RxToken for Received {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(&self.0)
    }
}

struct Sending<'a>(&'a mut VecDeque<Vec<u8>>);

impl TxToken for Sending<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let mut frame = vec![0; len];
        let result = f(&mut frame);
        self.0.push_back(frame);
        result
    }
}
