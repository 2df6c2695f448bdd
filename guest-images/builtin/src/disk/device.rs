//! The disk's driver: virtio-blk with one request at a time, for blocks of the workload's size.
//!
//! The ring runs without `VIRTIO_F_EVENT_IDX`, for the reason in `net/device.rs`. What must not be done here:
//! anything that knows what is in a block, or waiting.

use crate::log;
use crate::virtio::IdentityHal;
use alloc::boxed::Box;
use core::sync::atomic::{Ordering, fence};
use understudy_workload::disk::{BLOCK_BYTES, Block};
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::mmio::MmioTransport;
use virtio_drivers::transport::{DeviceStatus, Transport};

const REQUESTS: u16 = 0;
/// Descriptors in the ring: one request takes three.
const QUEUE: usize = 4;
const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR_BYTES;

const FEATURE_READ_ONLY: u64 = 1 << 5;
const FEATURE_FLUSH: u64 = 1 << 9;
const FEATURE_VERSION_1: u64 = 1 << 32;

const STATUS_OK: u8 = 0;
/// No device answers this: what the status byte is before there is an answer.
const STATUS_NONE: u8 = 0xff;

/// What can be asked, with its number in a request's header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Request {
    Read = 0,
    Write = 1,
    Flush = 4,
}

/// What the device reads and writes. On the heap, where it stays.
struct Buffers {
    header: [u8; 16],
    block: Block,
    status: [u8; 1],
}

/// A disk.
pub(super) struct VirtioBlk {
    transport: MmioTransport<'static>,
    ring: VirtQueue<IdentityHal, QUEUE>,
    buffers: Box<Buffers>,
    pending: Option<(Request, u16)>,
    sectors: u64,
    read_only: bool,
}

impl VirtioBlk {
    /// Starts the disk.
    pub(super) fn new(mut transport: MmioTransport<'static>) -> virtio_drivers::Result<Self> {
        let driver = DeviceStatus::ACKNOWLEDGE | DeviceStatus::DRIVER;
        transport.set_status(DeviceStatus::empty());
        transport.set_status(driver);
        let needed = FEATURE_FLUSH | FEATURE_VERSION_1;
        let features = transport.read_device_features() & (needed | FEATURE_READ_ONLY);
        transport.write_driver_features(features);
        transport.set_status(driver | DeviceStatus::FEATURES_OK);
        let agreed = transport.get_status().contains(DeviceStatus::FEATURES_OK);
        if !agreed || features & needed != needed {
            log!("disk: it must be a modern one that can flush, its features are {features:#x}");
            transport.set_status(driver | DeviceStatus::FAILED);
            return Err(virtio_drivers::Error::Unsupported);
        }
        let low = u64::from(transport.read_config_space::<u32>(0)?);
        let high = u64::from(transport.read_config_space::<u32>(4)?);
        let ring = VirtQueue::new(&mut transport, REQUESTS, false, false)?;
        transport.finish_init();
        let buffers = Box::new(Buffers {
            header: [0; 16],
            block: [0; BLOCK_BYTES],
            status: [STATUS_NONE],
        });
        Ok(Self {
            transport,
            ring,
            buffers,
            pending: None,
            sectors: low | high << 32,
            read_only: features & FEATURE_READ_ONLY != 0,
        })
    }

    /// Whole blocks on the disk.
    pub(super) fn blocks(&self) -> u64 {
        self.sectors / SECTORS_PER_BLOCK
    }

    /// Whether it can only be read.
    pub(super) fn is_read_only(&self) -> bool {
        self.read_only
    }

    /// The block that was read, once it was.
    pub(super) fn block(&self) -> &Block {
        &self.buffers.block
    }

    /// The block to write, before it is.
    pub(super) fn block_mut(&mut self) -> &mut Block {
        assert!(self.pending.is_none(), "the disk has the buffer");
        &mut self.buffers.block
    }

    /// Asks for something. The answer to what was asked before must have come.
    pub(super) fn ask(&mut self, request: Request, block: u32) {
        assert!(self.pending.is_none(), "one request at a time");
        let sector = match request {
            Request::Flush => 0,
            Request::Read | Request::Write => u64::from(block) * SECTORS_PER_BLOCK,
        };
        let Buffers {
            header,
            block,
            status,
        } = &mut *self.buffers;
        header[..4].copy_from_slice(&(request as u32).to_le_bytes());
        header[8..].copy_from_slice(&sector.to_le_bytes());
        status[0] = STATUS_NONE;
        // SAFETY: the buffers are on the heap and stay as long as this driver, which never goes away while
        // the device runs; nobody touches them until `poll` has taken the same ones back (`pending`).
        let added = unsafe {
            match request {
                Request::Read => self.ring.add(&[&*header], &mut [block, status]),
                Request::Write => self.ring.add(&[&*header, &*block], &mut [status]),
                Request::Flush => self.ring.add(&[&*header], &mut [status]),
            }
        };
        // The ring is empty between requests and has room for one.
        let token = added.expect("the ring has room for one request");
        self.pending = Some((request, token));
        fence(Ordering::SeqCst); // the ring before the look whether the disk wants to be told
        if self.ring.should_notify() {
            self.transport.notify(REQUESTS);
        }
    }

    /// The answer, if it has come: the disk's status if that is a refusal.
    pub(super) fn poll(&mut self) -> Option<Result<(), u8>> {
        let (request, token) = self.pending?;
        if self.ring.peek_used()? != token {
            return None;
        }
        let Buffers {
            header,
            block,
            status,
        } = &mut *self.buffers;
        // SAFETY: these are the buffers that `ask` added under this token, in the same order.
        let used = unsafe {
            match request {
                Request::Read => self.ring.pop_used(token, &[&*header], &mut [block, status]),
                Request::Write => self
                    .ring
                    .pop_used(token, &[&*header, &*block], &mut [status]),
                Request::Flush => self.ring.pop_used(token, &[&*header], &mut [status]),
            }
        };
        self.pending = None;
        match (used, status[0]) {
            (Ok(_), STATUS_OK) => Some(Ok(())),
            (_, status) => Some(Err(status)),
        }
    }
}
