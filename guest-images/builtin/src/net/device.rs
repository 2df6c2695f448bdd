//! The network card as smoltcp wants it: frames in and out of virtio-net's rings.
//!
//! Buffers are allocated once. What must not be done here: anything that knows what is in a frame.

use crate::virtio::IdentityHal;
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::cell::RefCell;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::mmio::MmioTransport;

/// Descriptors in each ring; a frame uses one.
const QUEUE: usize = 128;
/// Room for the virtio header and a full Ethernet frame.
const BUFFER_BYTES: usize = 2048;
/// Ethernet header and 1500 bytes.
const FRAME_BYTES_MAX: usize = 1514;
/// Finished transmit buffers are collected only when fewer than this are free: the card interrupts
/// for finished frames only after the last one collected, so this keeps those interrupts rare.
const FREE_LOW: usize = QUEUE / 4;

type Buffer = Box<[u8; BUFFER_BYTES]>;
type Driver = VirtIONetRaw<IdentityHal, MmioTransport<'static>, QUEUE>;

/// A frame on its way: its buffer and how many bytes of it the card was given.
type InFlight = (Buffer, usize);

struct Rings {
    driver: Driver,
    receiving: [Option<Buffer>; QUEUE],
    sending: [Option<InFlight>; QUEUE],
    free: Vec<Buffer>,
}

/// The network card.
pub(crate) struct NetDevice {
    rings: RefCell<Rings>,
}

fn new_buffer() -> Buffer {
    Box::new([0; BUFFER_BYTES])
}

impl NetDevice {
    /// Starts the card and fills its receive ring.
    pub(crate) fn new(transport: MmioTransport<'static>) -> virtio_drivers::Result<Self> {
        let driver = Driver::new(transport)?;
        let mut rings = Rings {
            driver,
            receiving: [const { None }; QUEUE],
            sending: [const { None }; QUEUE],
            free: (0..QUEUE).map(|_| new_buffer()).collect(),
        };
        for _ in 0..QUEUE {
            rings.receive_into(new_buffer());
        }
        Ok(Self { rings: RefCell::new(rings) })
    }

    /// The card's Ethernet address.
    pub(crate) fn mac_address(&self) -> [u8; 6] {
        self.rings.borrow().driver.mac_address()
    }

    /// Whether a frame has come in.
    pub(crate) fn has_received(&self) -> bool {
        self.rings.borrow().driver.poll_receive().is_some()
    }
}

impl Rings {
    fn receive_into(&mut self, mut buffer: Buffer) {
        // SAFETY: the buffer is kept in `receiving`, untouched, until the ring returns its token.
        let token = unsafe { self.driver.receive_begin(&mut buffer[..]) };
        // The ring has as many descriptors as there are buffers, so there is room; a broken card
        // only costs the buffer.
        if let Ok(token) = token {
            self.receiving[usize::from(token)] = Some(buffer);
        }
    }

    /// The next frame that came in: its buffer and where in it the frame lies.
    fn received(&mut self) -> Option<(Buffer, core::ops::Range<usize>)> {
        loop {
            let token = self.driver.poll_receive()?;
            let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
            // SAFETY: this is the buffer that `receive_into` began this token with.
            let done = unsafe { self.driver.receive_complete(token, &mut buffer[..]) };
            if let Ok((header, length)) = done {
                let end = header.saturating_add(length);
                if end <= BUFFER_BYTES {
                    return Some((buffer, header..end));
                }
            }
            self.receive_into(buffer);
        }
    }

    fn collect_sent(&mut self) {
        while let Some(token) = self.driver.poll_transmit() {
            let Some((buffer, length)) =
                self.sending.get_mut(usize::from(token)).and_then(Option::take)
            else {
                return;
            };
            // SAFETY: this is what `send` began this token with.
            let _ = unsafe { self.driver.transmit_complete(token, &buffer[..length]) };
            self.free.push(buffer);
        }
    }

    fn can_send(&mut self) -> bool {
        if self.free.len() < FREE_LOW {
            self.collect_sent();
        }
        !self.free.is_empty()
    }

    fn send<R>(&mut self, length: usize, write: impl FnOnce(&mut [u8]) -> R) -> R {
        let mut buffer = self.free.pop().unwrap_or_else(new_buffer);
        let header = self.driver.fill_buffer_header(&mut buffer[..]).unwrap_or(0);
        let end = (header + length).min(BUFFER_BYTES);
        let result = write(&mut buffer[header..end]);
        // SAFETY: the buffer is kept in `sending`, untouched, until the ring returns its token.
        match unsafe { self.driver.transmit_begin(&buffer[..end]) } {
            Ok(token) => self.sending[usize::from(token)] = Some((buffer, end)),
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
        self.rings.borrow_mut().receive_into(self.buffer);
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
        Some((RxToken { rings, buffer, frame }, TxToken { rings }))
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
