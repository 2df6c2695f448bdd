//! The network card as smoltcp wants it: frames in and out of virtio-net's rings.
//!
//! Buffers are allocated once. The card is told of new buffers once a batch, and may interrupt only
//! while the guest is about to sleep: exits and interrupts are what costs here. The rings run without
//! `VIRTIO_F_EVENT_IDX`: `VirtQueue::should_notify` compares ring indices without wrapping, which would
//! lose a kick once in 65,536 frames when kicks are batched.
//!
//! What must not be done here: anything that knows what is in a frame.

use crate::log;
use crate::virtio::IdentityHal;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use core::sync::atomic::{Ordering, fence};
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, Transport};

const RECEIVE: u16 = 0;
const TRANSMIT: u16 = 1;
/// Descriptors in each ring; a frame uses one.
const QUEUE: usize = 128;
/// Receive buffers go back to the card in batches of this size.
const REFILL: usize = QUEUE / 4;
/// Room for the virtio header and a full Ethernet frame.
const BUFFER_BYTES: usize = 2048;
/// `virtio_net_hdr` of a modern device; zeros mean "nothing offloaded".
const HEADER_BYTES: usize = 12;
/// Ethernet header and 1500 bytes.
const FRAME_BYTES_MAX: usize = 1514;

const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_VERSION_1: u64 = 1 << 32;

type Buffer = Box<[u8; BUFFER_BYTES]>;
type Ring = VirtQueue<IdentityHal, QUEUE>;

struct Rings {
    transport: MmioTransport<'static>,
    receive: Ring,
    transmit: Ring,
    receiving: [Option<Buffer>; QUEUE],
    /// With each buffer, how many bytes of it the card was given.
    sending: [Option<(Buffer, usize)>; QUEUE],
    /// Receive buffers on their way back to the card.
    emptied: Vec<Buffer>,
    free: Vec<Buffer>,
    unkicked: bool,
    /// A sender was turned away; the card must say when there is room again.
    starved: bool,
}

/// The network card.
pub(crate) struct NetDevice {
    rings: RefCell<Rings>,
    mac_address: [u8; 6],
}

fn new_buffer() -> Buffer {
    Box::new([0; BUFFER_BYTES])
}

/// Negotiates the features this driver knows.
fn negotiate(transport: &mut MmioTransport<'static>) -> virtio_drivers::Result<()> {
    let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
    transport.set_status(DeviceStatus::empty());
    transport.set_status(driver);
    let features = transport.read_device_features() & (FEATURE_MAC | FEATURE_VERSION_1);
    transport.write_driver_features(features);
    transport.set_status(driver | DeviceStatus::FEATURES_OK);
    let agreed = transport.get_status().contains(DeviceStatus::FEATURES_OK);
    if agreed && features == FEATURE_MAC | FEATURE_VERSION_1 {
        return Ok(());
    }
    log!("net: the card must be a modern one with an address, its features are {features:#x}");
    transport.set_status(driver | DeviceStatus::FAILED);
    Err(virtio_drivers::Error::Unsupported)
}

impl NetDevice {
    /// Starts the card and fills its receive ring.
    pub(crate) fn new(mut transport: MmioTransport<'static>) -> virtio_drivers::Result<Self> {
        negotiate(&mut transport)?;
        let mac_address = transport.read_config_space::<[u8; 6]>(0)?;
        let receive = Ring::new(&mut transport, RECEIVE, false, false)?;
        let mut transmit = Ring::new(&mut transport, TRANSMIT, false, false)?;
        transmit.set_dev_notify(false);
        transport.finish_init();
        let mut rings = Rings {
            transport,
            receive,
            transmit,
            receiving: [const { None }; QUEUE],
            sending: [const { None }; QUEUE],
            emptied: (0..QUEUE).map(|_| new_buffer()).collect(),
            free: (0..QUEUE).map(|_| new_buffer()).collect(),
            unkicked: false,
            starved: false,
        };
        rings.refill()?;
        Ok(Self {
            rings: RefCell::new(rings),
            mac_address,
        })
    }

    /// The card's Ethernet address.
    pub(crate) fn mac_address(&self) -> [u8; 6] {
        self.mac_address
    }

    /// Tells the card of the frames sent since the last call.
    pub(crate) fn kick(&self) {
        self.rings.borrow_mut().kick();
    }

    /// Whether frames wait for room in the transmit ring.
    pub(crate) fn is_starved(&self) -> bool {
        self.rings.borrow().starved
    }

    /// Whether something waits to be looked at.
    pub(crate) fn has_work(&self) -> bool {
        self.rings.borrow().has_work()
    }

    /// Lets the card interrupt. Returns false, with interrupts off again, if something waits already.
    pub(crate) fn may_sleep(&self) -> bool {
        let mut rings = self.rings.borrow_mut();
        rings.set_interrupts(true);
        // The card must see "interrupt me" before the last look at the rings: whatever comes after the
        // look then raises an interrupt.
        fence(Ordering::SeqCst);
        if rings.has_work() {
            rings.set_interrupts(false);
            return false;
        }
        true
    }

    /// Keeps the card from interrupting while the guest is awake anyway.
    pub(crate) fn wake(&self) {
        self.rings.borrow_mut().set_interrupts(false);
    }
}

impl Rings {
    fn has_work(&self) -> bool {
        self.receive.can_pop() || self.starved && self.transmit.can_pop()
    }

    fn set_interrupts(&mut self, on: bool) {
        self.receive.set_dev_notify(on);
        if self.starved {
            self.transmit.set_dev_notify(on);
        }
    }

    fn kick(&mut self) {
        if self.unkicked {
            self.unkicked = false;
            fence(Ordering::SeqCst); // the ring before the look whether the card wants to be told
            if self.transmit.should_notify() {
                self.transport.notify(TRANSMIT);
            }
        }
    }

    /// Gives the emptied receive buffers back to the card.
    fn refill(&mut self) -> virtio_drivers::Result<()> {
        while let Some(mut buffer) = self.emptied.pop() {
            // SAFETY: the buffer is kept in `receiving`, untouched, until the ring returns its token.
            let token = unsafe { self.receive.add(&[], &mut [&mut buffer[..]])? };
            self.receiving[usize::from(token)] = Some(buffer);
        }
        fence(Ordering::SeqCst);
        if self.receive.should_notify() {
            self.transport.notify(RECEIVE);
        }
        Ok(())
    }

    fn recycle(&mut self, buffer: Buffer) {
        self.emptied.push(buffer);
        if self.emptied.len() >= REFILL {
            // There are no more buffers than descriptors, so there is room; a card that broke its
            // ring only costs a buffer.
            let _ = self.refill();
        }
    }

    /// The next frame that came in: its buffer and where in it the frame lies.
    fn received(&mut self) -> Option<(Buffer, core::ops::Range<usize>)> {
        loop {
            let token = self.receive.peek_used()?;
            let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
            // SAFETY: this is the buffer that `refill` added under this token.
            let used = unsafe { self.receive.pop_used(token, &[], &mut [&mut buffer[..]]) };
            let end = used.unwrap_or(0) as usize;
            if (HEADER_BYTES..=BUFFER_BYTES).contains(&end) {
                return Some((buffer, HEADER_BYTES..end));
            }
            self.recycle(buffer);
        }
    }

    fn collect_sent(&mut self) {
        while let Some(token) = self.transmit.peek_used() {
            let Some((buffer, length)) = self
                .sending
                .get_mut(usize::from(token))
                .and_then(Option::take)
            else {
                return;
            };
            // SAFETY: this is what `send` added under this token.
            let _ = unsafe { self.transmit.pop_used(token, &[&buffer[..length]], &mut []) };
            self.free.push(buffer);
        }
    }

    fn can_send(&mut self) -> bool {
        if self.free.is_empty() {
            self.kick(); // or the card might wait for us while we wait for it
            self.collect_sent();
        }
        self.starved = self.free.is_empty();
        !self.starved
    }

    fn send<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.free.pop().unwrap_or_else(new_buffer);
        buffer[..HEADER_BYTES].fill(0);
        let end = (HEADER_BYTES + length).min(BUFFER_BYTES);
        let result = write(&mut buffer[HEADER_BYTES..end]);
        // SAFETY: the buffer is kept in `sending`, untouched, until the ring returns its token.
        match unsafe { self.transmit.add(&[&buffer[..end]], &mut []) } {
            Ok(token) => {
                self.sending[usize::from(token)] = Some((buffer, end));
                self.unkicked = true;
            }
            Err(_) => self.free.push(buffer), // a lost frame, as networks have them
        }
        result
    }
}

/// One received frame.
pub(crate) struct RxToken<'a> {
    rings: &'a RefCell<Rings>,
    buffer: Buffer,
    frame: core::ops::Range<usize>,
}

/// The right to send one frame.
pub(crate) struct TxToken<'a> {
    rings: &'a RefCell<Rings>,
}

impl phy::RxToken for RxToken<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, read: F) -> R {
        let result = read(&self.buffer[self.frame]);
        self.rings.borrow_mut().recycle(self.buffer);
        result
    }
}

impl phy::TxToken for TxToken<'_> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, length: usize, write: F) -> R {
        self.rings.borrow_mut().send(length, write)
    }
}

impl phy::Device for NetDevice {
    type RxToken<'a> = RxToken<'a>;
    type TxToken<'a> = TxToken<'a>;

    fn receive(&mut self, _now: Instant) -> Option<(RxToken<'_>, TxToken<'_>)> {
        let rings = &self.rings;
        let (buffer, frame) = {
            let mut rings = rings.borrow_mut();
            if !rings.can_send() {
                return None; // every frame may want an answer
            }
            rings.received()?
        };
        Some((
            RxToken {
                rings,
                buffer,
                frame,
            },
            TxToken { rings },
        ))
    }

    fn transmit(&mut self, _now: Instant) -> Option<TxToken<'_>> {
        let can_send = self.rings.borrow_mut().can_send();
        can_send.then_some(TxToken { rings: &self.rings })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = FRAME_BYTES_MAX;
        capabilities
    }
}
