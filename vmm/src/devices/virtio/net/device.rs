//! The network device itself: moves frames between rings, backend and gate.
//!
//! If the backend takes frames with headers, checksums and segmentation are left to it, and what passes here
//! and through the gate is header and frame in one. If not, a frame on the ring is a frame on the wire, behind
//! a header that says nothing. See [`offload`].

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;
use std::os::fd::AsRawFd;

use bytes::Bytes as Frame;
use understudy_replication::output::{Full, NetPort, SendError, announce};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{VIRTIO_NET_F_MAC, VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::backend::{
    BackendError, FRAME_BYTES_MAX, FRAME_BYTES_MIN, FrameSource, Framing, HEADER_BYTES,
};
use super::offload::{self, BadHeader, Offload, PLAIN};
use super::state::{NetState, VERSION};
use crate::devices::virtio::{Chain, Progress, RingFault, Rings, VirtioDevice, read_space};
use crate::devices::{DeviceError, DeviceState, EventSource};
use crate::output::SpaceEvent;

/// Queue numbers.
const RX: usize = 0;
const TX: usize = 1;
/// Descriptors per queue.
const QUEUE_SIZE: u16 = 256;
/// Frames moved in one call.
const FRAMES_PER_CALL: usize = 64;
/// Frames of a standby, or without a driver, dropped in one call.
const DROPS_PER_CALL: usize = 4096;

/// Numbers of [`VirtioDevice::event_sources`].
const SOURCE_BACKEND: usize = 0;

/// A network device.
pub struct NetDevice {
    name: String,
    mac: [u8; 6],
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
    address: Option<Ipv4Addr>,
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

/// Why a chain was not used.
#[derive(Debug)]
struct MalformedChain;

impl From<GuestMemoryError> for MalformedChain {
    fn from(_: GuestMemoryError) -> Self {
        Self
    }
}

impl From<BadHeader> for MalformedChain {
    fn from(_: BadHeader) -> Self {
        Self
    }
}

impl NetDevice {
    /// A device whose guest has the address `mac`, receiving from `backend` and sending to `port`, whose
    /// waker is that of `space`.
    #[must_use]
    pub fn new(
        name: impl Into<String>,
        mac: [u8; 6],
        backend: Box<dyn FrameSource>,
        port: NetPort,
        space: SpaceEvent,
    ) -> Self {
        Self {
            name: name.into(),
            mac,
            framing: backend.framing(),
            offload: Offload::default(),
            backend,
            backend_up: true,
            port,
            space,
            link_up: true,
            address: None,
            buffer: vec![0; HEADER_BYTES + FRAME_BYTES_MAX].into_boxed_slice(),
            counters: NetCounters::default(),
        }
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

    /// The guest's IPv4 address, as far as its frames have told.
    #[must_use]
    pub fn address(&self) -> Option<Ipv4Addr> {
        self.address
    }

    /// Tells the network that the guest is here now: RARP, and ARP if its address is known.
    ///
    /// # Errors
    /// If the backend does not take the frames or the gate is shut.
    pub fn announce(&self) -> Result<(), SendError> {
        let send = |frame: Vec<u8>| match self.framing {
            Framing::Bare => self.port.announce(&frame),
            Framing::Headers => self.port.announce(&[&PLAIN[..], &frame].concat()),
        };
        send(announce::rarp(self.mac))?;
        match self.address {
            Some(address) => send(announce::gratuitous_arp(self.mac, address)),
            None => Ok(()),
        }
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

    fn drop_input(&mut self) {
        for _ in 0..DROPS_PER_CALL {
            if self.receive().is_none() {
                return;
            }
            self.counters.rx_dropped += 1;
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
                    self.address = announce::learn_address(self.address, self.mac, &frame);
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

/// Reads header and frame in a chain: its readable bytes.
fn read_packet(chain: Chain<'_>, rings: &Rings<'_>) -> Result<Vec<u8>, MalformedChain> {
    // The lengths are the guest's words: checked before anything of that size is allocated.
    let mut bytes = 0;
    for descriptor in chain.clone() {
        bytes += descriptor.len() as usize;
        if descriptor.is_write_only() || bytes > HEADER_BYTES + FRAME_BYTES_MAX {
            return Err(MalformedChain);
        }
    }
    // Exactly as much as it needs, because the gate may keep it.
    let mut packet: Vec<u8> = Vec::with_capacity(bytes);
    for descriptor in chain {
        let (len, have) = (descriptor.len() as usize, packet.len());
        // The guest may have changed it meanwhile.
        if descriptor.is_write_only() || have + len > bytes {
            return Err(MalformedChain);
        }
        packet.resize(have + len, 0);
        rings
            .memory
            .read_slice(&mut packet[have..], descriptor.addr())?;
    }
    if packet.len() < HEADER_BYTES + FRAME_BYTES_MIN {
        return Err(MalformedChain);
    }
    Ok(packet)
}

/// Writes header and frame into a chain, all or (to the guest's eyes) nothing.
fn write_frame(
    chain: Chain<'_>,
    rings: &Rings<'_>,
    header: &[u8; HEADER_BYTES],
    frame: &[u8],
) -> Result<u32, MalformedChain> {
    let mut parts = [&header[..], frame];
    let mut written = 0;
    for descriptor in chain {
        if !descriptor.is_write_only() {
            return Err(MalformedChain);
        }
        let (mut address, mut room) = (descriptor.addr(), descriptor.len() as usize);
        for part in &mut parts {
            let len = room.min(part.len());
            rings.memory.write_slice(&part[..len], address)?;
            address = GuestAddress(address.0.checked_add(len as u64).ok_or(MalformedChain)?);
            *part = &part[len..];
            room -= len;
            written += len as u32;
        }
        if parts[1].is_empty() {
            return Ok(written);
        }
    }
    Err(MalformedChain)
}

impl VirtioDevice for NetDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_NET_F_MAC | 1 << VIRTIO_NET_F_STATUS;
        match self.framing {
            Framing::Bare => always,
            Framing::Headers => always | offload::FEATURES,
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_net_config: mac, then status.
        let mut space = [0; 8];
        space[..6].copy_from_slice(&self.mac);
        let status = if self.link_up {
            VIRTIO_NET_S_LINK_UP
        } else {
            0
        };
        space[6..].copy_from_slice(&(status as u16).to_le_bytes());
        read_space(&space, offset, data);
    }

    /// Nothing is writable without the legacy interface.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    /// Offload aside, no feature changes what the device does: a driver that refuses `STATUS` does not look
    /// at it.
    fn activate(&mut self, features: u64) {
        self.set_offload(Offload::of(features & offload::FEATURES));
    }

    fn reset(&mut self) {
        // The next driver reads the link's state afresh. The guest's address stays what it was.
        self.link_up = self.backend_up;
        self.set_offload(Offload::default());
    }

    fn start(&mut self, rings: Option<&mut Rings<'_>>) {
        match rings {
            // This host's link need not be what the old host's was.
            Some(rings) => self.update_link(rings),
            None => self.link_up = self.backend_up,
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
            _ => Ok(Progress::Done),
        }
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![
            EventSource::Input(self.backend.as_fd().as_raw_fd()),
            EventSource::Counter(self.space.as_raw_fd()),
        ]
    }

    fn process_event(
        &mut self,
        source: usize,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault> {
        if source == SOURCE_BACKEND {
            return match rings {
                Some(rings) => self.process_rx(rings),
                None => {
                    self.drop_input();
                    Ok(Progress::Done)
                }
            };
        }
        self.space.clear();
        rings.map_or(Ok(Progress::Done), |rings| self.process_tx(rings))
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = NetState {
            mac: self.mac,
            headers: self.framing == Framing::Headers,
            link_up: self.link_up,
            address: self.address,
        };
        DeviceState::encode(&self.name, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: NetState = state.decode(&self.name, VERSION)?;
        if state.mac != self.mac {
            return Err(DeviceError::Invalid {
                device: self.name.clone(),
                what: format!("MAC {:02x?}, here it is {:02x?}", state.mac, self.mac),
            });
        }
        if state.headers != (self.framing == Framing::Headers) {
            return Err(DeviceError::Invalid {
                device: self.name.clone(),
                what: format!(
                    "frames with headers: {}, here offload is: {}",
                    state.headers,
                    self.offload_in_words()
                ),
            });
        }
        // Until a driver is there; the transport says so next if there is one.
        self.set_offload(Offload::default());
        self.link_up = state.link_up;
        self.address = state.address;
        Ok(())
    }
}
