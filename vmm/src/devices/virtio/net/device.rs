//! The network device itself: moves frames between rings, backend and gate.
//!
//! If the backend takes frames with headers, checksums and segmentation are left to it, and what passes here
//! and through the gate is header and frame in one. If not, a frame on the ring is a frame on the wire, behind
//! a header that says nothing. See [`offload`].

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;

use bytes::Bytes as Frame;
use understudy_replication::Fingerprint;
use understudy_replication::output::announce::Addresses;
use understudy_replication::output::{Full, NetPort, SendError};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_GUEST_ANNOUNCE, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_ANNOUNCE, VIRTIO_NET_S_LINK_UP,
};

use super::announcer::Announcer;
use super::backend::{
    BackendError, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameSource, Framing, HEADER_BYTES,
};
use super::control::{self, CONTROL};
use super::offload::{self, Offload, PLAIN};
use super::packet::{MalformedChain, read_packet, write_frame};
use super::state::{NetState, VERSION};
use crate::devices::virtio::{Chain, Progress, RingFault, Rings, VirtioDevice, read_space};
use crate::devices::{DeviceError, DeviceState, EventSource};
use crate::output::SpaceEvent;

/// Queue numbers.
const RX: usize = 0;
const TX: usize = 1;
/// Descriptors of the queues for frames.
const QUEUE_SIZE: u16 = 256;
/// Frames moved in one call.
const FRAMES_PER_CALL: usize = 64;
/// Frames of a standby, or without a driver, dropped in one call.
const DROPS_PER_CALL: usize = 4096;

/// Numbers of [`VirtioDevice::event_sources`].
const SOURCE_BACKEND: usize = 0;
const SOURCE_SPACE: usize = 1;
/// What a driver has to accept if it is to announce its guest.
const GUEST_ANNOUNCES: u64 =
    1 << VIRTIO_NET_F_STATUS | 1 << VIRTIO_NET_F_CTRL_VQ | 1 << VIRTIO_NET_F_GUEST_ANNOUNCE;

/// A network device.
pub struct NetDevice {
    name: String,
    backend: Box<dyn FrameSource>,
    framing: Framing,
    offload: Offload,
    /// The backend works. Belongs to this host, is not saved.
    backend_up: bool,
    port: NetPort,
    /// Fires when the port has room again.
    space: SpaceEvent,
    /// The link as the guest knows it.
    link_up: bool,
    /// What the guest is told of the largest packets: what its first host's network takes.
    mtu_bytes: Option<u16>,
    /// The guest's driver announces the guest if it is asked to.
    guest_announces: bool,
    /// It is asked to, and has not answered.
    guest_is_asked: bool,
    addresses: Addresses,
    announcer: Announcer,
    /// The network knows that the guest is here, and it does not run yet.
    is_about_to_run: bool,
    /// Where a frame rests between backend and ring, within one call.
    buffer: Box<[u8]>,
    counters: NetCounters,
}

/// What a network device has done since it was built. Not part of its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetCounters {
    /// Frames given to the guest.
    pub rx_frames: u64,
    /// Their bytes.
    pub rx_bytes: u64,
    /// Frames that found no guest: on standby, or without a driver.
    pub rx_dropped: u64,
    /// Frames taken from the guest.
    pub tx_frames: u64,
    /// Their bytes.
    pub tx_bytes: u64,
    /// Times the guest had to wait because the output gate was full.
    pub tx_waits: u64,
    /// Chains of the guest that were too short, too long or not in memory.
    pub malformed_chains: u64,
    /// Times the backend failed.
    pub backend_failures: u64,
}

impl NetDevice {
    /// A device whose guest has the address `mac`, receiving from `backend` and sending to `port`, whose
    /// waker is that of `space`.
    ///
    /// # Errors
    /// If the host has no timer left.
    pub fn new(
        name: impl Into<String>,
        mac: [u8; 6],
        backend: Box<dyn FrameSource>,
        port: NetPort,
        space: SpaceEvent,
    ) -> io::Result<Self> {
        Ok(Self {
            name: name.into(),
            framing: backend.framing(),
            offload: Offload::default(),
            mtu_bytes: backend.mtu_bytes(),
            backend,
            backend_up: true,
            port,
            space,
            link_up: true,
            guest_announces: false,
            guest_is_asked: false,
            addresses: Addresses::of(mac),
            announcer: Announcer::new()?,
            is_about_to_run: false,
            buffer: vec![0; HEADER_BYTES + FRAME_BYTES_MAX].into_boxed_slice(),
            counters: NetCounters::default(),
        })
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> NetCounters {
        self.counters
    }

    /// Whether the backend works; it is an alarm if not.
    #[must_use]
    pub fn backend_is_up(&self) -> bool {
        self.backend_up
    }

    /// Adds to a fingerprint how large packets the guest may send, and how large they may be here.
    pub fn describe(&self, into: &mut Fingerprint) {
        let key = format!("device.{}.mtu", self.name);
        if let Some(told) = self.mtu_bytes {
            into.measure(key.as_str(), told.into());
        }
        if let Some(most) = self.backend.mtu_bytes() {
            into.limit(key, most.into());
        }
    }

    /// What is behind the device, as far as its frames have told.
    #[must_use]
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Tells the network that the guest is here now, past the gate: only for a side that was just granted the
    /// guest. It is said again some times, and the guest is asked to say it, too, if it can.
    ///
    /// # Errors
    /// If the backend does not take the frames or the gate is shut.
    pub fn announce(&mut self) -> Result<(), SendError> {
        let mut announced = Ok(());
        self.is_about_to_run = true;
        for frame in self.addresses.announcements() {
            // What one could not be told of the others still can.
            let sent = self.port.announce(&self.framed(&frame));
            announced = announced.and(sent);
        }
        self.announcer.begin(self.backend.carries());
        announced
    }

    /// Says it again if it is time. By now this side may be one that has a standby, or one that was replaced:
    /// these frames wait for their epoch like any others.
    fn announce_again(&mut self, rings: Option<&mut Rings<'_>>) {
        if !self.announcer.is_due(|| self.backend.carries()) {
            return;
        }
        for frame in self.addresses.announcements() {
            let frame = self.framed(&frame);
            if self.port.send(frame.into()).is_err() {
                break; // The gate is full of what the guest says, which the network hears anyhow.
            }
        }
        if let Some(rings) = rings {
            self.ask_guest(rings);
        }
    }

    /// Asks the guest to announce what only it knows.
    fn ask_guest(&mut self, rings: &mut Rings<'_>) {
        if self.guest_announces {
            self.guest_is_asked = true;
            rings.interrupt.raise_config();
        }
    }

    /// A frame of our own as the backend takes it.
    fn framed(&self, frame: &[u8]) -> Vec<u8> {
        match self.framing {
            Framing::Bare => frame.to_vec(),
            Framing::Headers => [&PLAIN[..], frame].concat(),
        }
    }

    /// What becomes readable when it is time to announce again.
    #[cfg(test)]
    pub(super) fn timer(&self) -> std::os::fd::BorrowedFd<'_> {
        self.announcer.as_fd()
    }

    /// Whether the backend takes over checksums and segmentation, in words.
    #[must_use]
    pub fn offload_in_words(&self) -> &'static str {
        match self.framing {
            Framing::Bare => "none",
            Framing::Headers => "checksums and TCP segmentation",
        }
    }

    /// The next frame from the backend into `buffer`, always behind a header; its length without. A backend
    /// that fails takes the link down.
    fn receive(&mut self) -> Option<usize> {
        self.take_arrived().or_else(|| self.receive_from_backend())
    }

    fn receive_from_backend(&mut self) -> Option<usize> {
        if !self.backend_up {
            return None;
        }
        let (header, frame) = self.buffer.split_at_mut(HEADER_BYTES);
        let received = match self.framing {
            Framing::Bare => {
                header.copy_from_slice(&PLAIN);
                self.backend.recv(frame)
            }
            Framing::Headers => self
                .backend
                .recv(&mut self.buffer)
                .map(|len| len.map(|len| len.saturating_sub(HEADER_BYTES))),
        };
        match received {
            Ok(len) => len,
            Err(error) => {
                self.backend_failed(&error);
                None
            }
        }
    }

    /// What came with the guest from its old host, into `buffer` as from the backend, which looks the same there.
    fn take_arrived(&mut self) -> Option<usize> {
        loop {
            let packet = self.port.arrived()?;
            let from = self.packet_start();
            let len = (from + packet.len()).saturating_sub(HEADER_BYTES);
            // Only that host's word says that it came from a backend.
            if (FRAME_BYTES_MIN..=FRAME_BYTES_MAX).contains(&len) {
                self.buffer[..HEADER_BYTES].copy_from_slice(&PLAIN);
                self.buffer[from..from + packet.len()].copy_from_slice(&packet);
                return Some(len);
            }
        }
    }

    fn backend_failed(&mut self, error: &BackendError) {
        self.backend_up = false;
        self.counters.backend_failures += 1;
        tracing::error!(device = self.name, %error, "network backend lost; the guest's link is down");
    }

    /// Tells the guest if its link is not what it knows.
    fn update_link(&mut self, rings: &mut Rings<'_>) {
        if self.link_up != self.backend_up {
            self.link_up = self.backend_up;
            rings.interrupt.raise_config();
        }
    }

    /// What comes in while there is no guest to take it. It is kept for one that is about to run.
    fn drop_input(&mut self) {
        for _ in 0..DROPS_PER_CALL {
            let Some(len) = self.receive_from_backend() else {
                return;
            };
            if !self.is_about_to_run || !self.port.defer(self.received_packet(len)) {
                self.counters.rx_dropped += 1;
            }
        }
    }

    /// The frame of `len` bytes in `buffer`, as the backend had it.
    fn received_packet(&self, len: usize) -> &[u8] {
        &self.buffer[self.packet_start()..HEADER_BYTES + len]
    }

    /// Where what the backend has begins in `buffer`.
    fn packet_start(&self) -> usize {
        match self.framing {
            Framing::Bare => HEADER_BYTES,
            Framing::Headers => 0,
        }
    }

    /// Backend to guest, as long as both have something.
    fn process_rx(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        let result = self.fill_rx(rings);
        self.update_link(rings);
        result
    }

    fn fill_rx(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        for _ in 0..FRAMES_PER_CALL {
            // A buffer first, so that frames without one stay in the backend, which is bounded.
            let chain = match rings.pop(RX)? {
                Some(chain) => chain,
                None if rings.await_kick(RX)? => continue,
                None => {
                    // Nothing is received now, but a backend that has gone must not stay unnoticed.
                    if self.backend_up
                        && let Err(error) = self.backend.probe()
                    {
                        self.backend_failed(&error);
                    }
                    return Ok(Progress::Done);
                }
            };
            let Some(len) = self.receive() else {
                rings.undo_pop(RX);
                return Ok(Progress::Done);
            };
            let Some(header) = self.received_header(len) else {
                // Not one that the guest understands: it never knows.
                rings.undo_pop(RX);
                self.counters.rx_dropped += 1;
                continue;
            };
            let head = chain.head_index();
            let frame = &self.buffer[HEADER_BYTES..HEADER_BYTES + len];
            // The announcements of the guest's next host come here, too.
            if !self.addresses.is_own(frame) {
                self.port.received(self.received_packet(len));
            }
            self.addresses.received(frame);
            let written = match write_frame(chain, rings, &header, frame) {
                Ok(written) => {
                    self.counters.rx_frames += 1;
                    self.counters.rx_bytes += len as u64;
                    written
                }
                // The frame is lost with the buffer that could not hold it.
                Err(MalformedChain) => {
                    self.counters.malformed_chains += 1;
                    0
                }
            };
            rings.push_used(RX, head, written)?;
        }
        Ok(Progress::More(RX))
    }

    /// The header for the guest of the frame of `len` bytes in `buffer`.
    fn received_header(&self, len: usize) -> Option<[u8; HEADER_BYTES]> {
        let (header, frame) = self.buffer.split_first_chunk::<HEADER_BYTES>()?;
        self.offload.received(header, &frame[..len]).ok()
    }

    /// Leaves to the guest what its driver has negotiated.
    fn set_offload(&mut self, offload: Offload) {
        if self.framing == Framing::Bare || offload == self.offload {
            return;
        }
        self.offload = offload;
        if let Err(error) = self.backend.set_receives(offload.receives()) {
            // The guest then gets every frame whole and checked, which is slower and right.
            tracing::error!(device = self.name, %error, "the network backend does not take over offload");
        }
    }

    /// The frame in a chain, with its header if the backend takes headers.
    fn sent_frame(&self, chain: Chain<'_>, rings: &Rings<'_>) -> Result<Frame, MalformedChain> {
        let mut packet = read_packet(chain, rings)?;
        let (header, frame) = packet
            .split_first_chunk_mut::<HEADER_BYTES>()
            .ok_or(MalformedChain)?;
        *header = self.offload.sent(header, frame)?;
        Ok(Frame::from(packet))
    }

    /// What the driver has to say besides frames.
    fn process_control(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        let malformed = &mut self.counters.malformed_chains;
        control::process(rings, &mut self.guest_is_asked, malformed)
    }

    /// Guest to gate, as long as the gate takes it.
    fn process_tx(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        for _ in 0..FRAMES_PER_CALL {
            let chain = match rings.pop(TX)? {
                Some(chain) => chain,
                None if rings.await_kick(TX)? => continue,
                None => return Ok(Progress::Done),
            };
            let head = chain.head_index();
            match self.sent_frame(chain, rings) {
                Ok(packet) => {
                    let frame = packet.slice(HEADER_BYTES..);
                    self.addresses.sent(&frame);
                    let len = frame.len() as u64;
                    let packet = match self.framing {
                        Framing::Bare => frame,
                        Framing::Headers => packet,
                    };
                    if let Err(Full) = self.port.send(packet) {
                        // The frame stays with the guest; `space` brings us back.
                        rings.undo_pop(TX);
                        self.counters.tx_waits += 1;
                        return Ok(Progress::Done);
                    }
                    self.counters.tx_frames += 1;
                    self.counters.tx_bytes += len;
                }
                Err(MalformedChain) => self.counters.malformed_chains += 1,
            }
            rings.push_used(TX, head, 0)?;
        }
        Ok(Progress::More(TX))
    }
}

impl VirtioDevice for NetDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_NET_F_MAC | GUEST_ANNOUNCES;
        let offload = match self.framing {
            Framing::Bare => 0,
            Framing::Headers => offload::FEATURES,
        };
        let mtu = self.mtu_bytes.map_or(0, |_| 1 << VIRTIO_NET_F_MTU);
        always | offload | mtu
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE, control::QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config: mac, status, a number of queues that is not offered, mtu.
        let mut space = [0; 12];
        space[..6].copy_from_slice(&self.addresses.own());
        let bit = |is: bool, bit: u32| if is { bit } else { 0 };
        let status = bit(self.link_up, VIRTIO_NET_S_LINK_UP)
            | bit(self.guest_is_asked, VIRTIO_NET_S_ANNOUNCE);
        space[6..8].copy_from_slice(&(status as u16).to_le_bytes());
        space[10..].copy_from_slice(&self.mtu_bytes.unwrap_or_default().to_le_bytes());
        read_space(&space, offset, data);
    }

    /// Needs the legacy interface.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// A driver that refuses `STATUS` does not look at it.
    fn activate(&mut self, features: u64) {
        self.set_offload(Offload::of(features & offload::FEATURES));
        self.guest_announces = features & GUEST_ANNOUNCES == GUEST_ANNOUNCES;
        self.guest_is_asked &= self.guest_announces;
    }

    fn reset(&mut self) {
        // The next driver reads the link's state afresh. The guest's addresses stay what they were.
        self.link_up = self.backend_up;
        self.guest_announces = false;
        self.guest_is_asked = false;
        self.set_offload(Offload::default());
    }

    fn start(&mut self, rings: Option<&mut Rings<'_>>) {
        self.is_about_to_run = false;
        match rings {
            // This host's link need not be what the old host's was.
            Some(rings) => {
                self.update_link(rings);
                if self.announcer.has_begun() {
                    self.ask_guest(rings);
                }
            }
            None => {
                self.link_up = self.backend_up;
                // Nobody is there to take it.
                while self.port.arrived().is_some() {
                    self.counters.rx_dropped += 1;
                }
            }
        }
    }

    fn process_queue(
        &mut self,
        queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, RingFault> {
        match queue {
            RX => self.process_rx(rings),
            TX => self.process_tx(rings),
            CONTROL => self.process_control(rings),
            _ => Ok(Progress::Done),
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![
            EventSource::Input(self.backend.as_fd().as_raw_fd()),
            EventSource::Counter(self.space.as_raw_fd()),
            EventSource::Counter(self.announcer.as_fd().as_raw_fd()),
        ]
    }

    fn process_event(
        &mut self,
        source: usize,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault> {
        match (source, rings) {
            (SOURCE_BACKEND, Some(rings)) => self.process_rx(rings),
            (SOURCE_BACKEND, None) => {
                self.drop_input();
                Ok(Progress::Done)
            }
            (SOURCE_SPACE, rings) => {
                self.space.clear();
                rings.map_or(Ok(Progress::Done), |rings| self.process_tx(rings))
            }
            (_, rings) => {
                self.announce_again(rings);
                Ok(Progress::Done)
            }
        }
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = NetState {
            headers: self.framing == Framing::Headers,
            mtu_bytes: self.mtu_bytes,
            link_up: self.link_up,
            guest_is_asked: self.guest_is_asked,
            addresses: self.addresses.clone(),
        };
        DeviceState::encode(&self.name, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: NetState = state.decode(&self.name, VERSION)?;
        let invalid = |what: String| {
            Err(DeviceError::Invalid {
                device: self.name.clone(),
                what,
            })
        };
        let (there, here) = (state.addresses.own(), self.addresses.own());
        if there != here {
            return invalid(format!("MAC {there:02x?}, here it is {here:02x?}"));
        }
        if !state.addresses.is_possible() {
            return invalid("more addresses than are kept".into());
        }
        if state.headers != (self.framing == Framing::Headers) {
            return invalid(format!(
                "frames with headers: {}, here offload is: {}",
                state.headers,
                self.offload_in_words()
            ));
        }
        // Whether this host's network takes as much was compared before; once it is needed, a network that
        // does not is better than none.
        if state.mtu_bytes.is_some() != self.mtu_bytes.is_some() {
            let (there, here) = (state.mtu_bytes, self.mtu_bytes);
            return invalid(format!("MTU {there:?}, here it is {here:?}"));
        }
        // Until a driver is there; the transport says so next if there is one.
        self.set_offload(Offload::default());
        self.guest_announces = false;
        self.guest_is_asked = state.guest_is_asked;
        self.mtu_bytes = state.mtu_bytes;
        self.link_up = state.link_up;
        self.addresses = state.addresses;
        Ok(())
    }
}
