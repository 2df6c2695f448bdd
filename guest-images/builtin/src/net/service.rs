//! A TCP service: a fixed set of sockets listening on one port, each with the state of its connection.
//!
//! What must not be done here: anything a single protocol needs (see stream.rs, counter.rs, echo.rs).

use super::TCP_CLOCK_SPEED;
use alloc::vec;
use alloc::vec::Vec;
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp;
use smoltcp::time::Duration;

/// A silent peer is probed this often and given up after the timeout, so that its place is free again.
const KEEP_ALIVE_S: u64 = 15;
const TIMEOUT_S: u64 = 60;

/// What happened in one pass over a service.
#[derive(Clone, Copy, Default)]
pub(crate) struct Pass {
    /// Something was done: the network should be polled and the service looked at again.
    pub(crate) progress: bool,
    /// When, in nanoseconds of the guest's clock, the service wants to be looked at even if nothing
    /// comes in.
    pub(crate) next_ns: Option<u64>,
}

impl Pass {
    /// Both passes as one.
    pub(crate) fn and(self, other: Self) -> Self {
        let next_ns = match (self.next_ns, other.next_ns) {
            (Some(one), Some(two)) => Some(one.min(two)),
            (one, two) => one.or(two),
        };
        Self {
            progress: self.progress || other.progress,
            next_ns,
        }
    }
}

/// One connection's part of a protocol. `Default` is its state before the first byte.
pub(crate) trait Connection: Default {
    /// What all connections of the service share.
    type Shared;

    /// Moves bytes between the socket and the protocol, without waiting.
    fn serve(
        &mut self,
        socket: &mut tcp::Socket<'_>,
        shared: &mut Self::Shared,
        now_ns: u64,
    ) -> Pass;
}

/// Sizes of a service's sockets.
pub(crate) struct Sizes {
    /// Connections at the same time.
    pub(crate) connections: usize,
    /// Receive buffer of each, in bytes.
    pub(crate) receive_bytes: usize,
    /// Transmit buffer of each, in bytes.
    pub(crate) transmit_bytes: usize,
}

struct Place<C> {
    handle: SocketHandle,
    connection: C,
    open: bool,
}

/// A TCP service on one port.
pub(crate) struct Service<C: Connection> {
    port: u16,
    places: Vec<Place<C>>,
    first: usize,
    shared: C::Shared,
}

impl<C: Connection> Service<C> {
    /// Makes the sockets; they listen from the first pass on.
    pub(crate) fn new(
        sockets: &mut SocketSet<'static>,
        port: u16,
        sizes: &Sizes,
        shared: C::Shared,
    ) -> Self {
        let place = |_| {
            let mut socket = tcp::Socket::new(
                tcp::SocketBuffer::new(vec![0; sizes.receive_bytes]),
                tcp::SocketBuffer::new(vec![0; sizes.transmit_bytes]),
            );
            socket.set_nagle_enabled(false);
            socket.set_ack_delay(None);
            socket.set_keep_alive(Some(Duration::from_secs(KEEP_ALIVE_S * TCP_CLOCK_SPEED)));
            socket.set_timeout(Some(Duration::from_secs(TIMEOUT_S * TCP_CLOCK_SPEED)));
            Place {
                handle: sockets.add(socket),
                connection: C::default(),
                open: false,
            }
        };
        let places = (0..sizes.connections).map(place).collect();
        Self {
            port,
            places,
            first: 0,
            shared,
        }
    }

    /// Serves every connection once, beginning with another one each time.
    pub(crate) fn serve(&mut self, sockets: &mut SocketSet<'static>, now_ns: u64) -> Pass {
        self.first = (self.first + 1) % self.places.len();
        let (later, sooner) = self.places.split_at_mut(self.first);
        let mut pass = Pass::default();
        for place in sooner.iter_mut().chain(later) {
            let socket = sockets.get_mut::<tcp::Socket<'_>>(place.handle);
            if !socket.is_open() {
                // Fails only for an open socket or port 0.
                let _ = socket.listen(self.port);
                place.connection = C::default();
                place.open = false;
                continue;
            }
            if socket.is_listening() {
                continue;
            }
            place.open = true;
            pass = pass.and(place.connection.serve(socket, &mut self.shared, now_ns));
        }
        pass
    }

    /// What all connections share.
    pub(crate) fn shared(&mut self) -> &mut C::Shared {
        &mut self.shared
    }

    /// The connections that are open.
    pub(crate) fn open(&self) -> impl Iterator<Item = &C> {
        self.places
            .iter()
            .filter(|place| place.open)
            .map(|place| &place.connection)
    }
}
