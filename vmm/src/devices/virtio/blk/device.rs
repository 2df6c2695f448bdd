//! The disk itself: does what requests ask for, and answers.
//!
//! A failing disk of the host is the guest's I/O error and this host's alarm, nothing more: the guest lives
//! on. What must not be done here: more than one request a call; the room's top comment says why.

use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::AsRawFd;
use std::sync::Arc;

use understudy_replication::disk::Disk;
use understudy_replication::disk::Storage;
use virtio_bindings::virtio_blk::{
    VIRTIO_BLK_F_BLK_SIZE, VIRTIO_BLK_F_DISCARD, VIRTIO_BLK_F_FLUSH, VIRTIO_BLK_F_RO,
    VIRTIO_BLK_F_SEG_MAX, VIRTIO_BLK_F_SIZE_MAX, VIRTIO_BLK_F_WRITE_ZEROES,
};
use virtio_bindings::virtio_ids::VIRTIO_ID_BLOCK;
use vm_memory::Bytes;
use vmm_sys_util::eventfd::EventFd;

use super::SECTOR_BYTES;
use super::request::{
    Bounds, DATA_BYTES_MAX, ID_BYTES, RANGE_SECTORS_MAX, Request, RequestKind, SEGMENT_BYTES_MAX,
    SEGMENTS_MAX, Segments, Status,
};
use super::state::{BlkState, VERSION};
use crate::devices::virtio::{Chain, Progress, RingFault, Rings, VirtioDevice, read_space};
use crate::devices::{DeviceError, DeviceState, EventSource};
use crate::memory::GuestRam;

const QUEUE: usize = 0;
/// Descriptors in the queue: header, status and twice the segments of a request fit.
const QUEUE_SIZE: u16 = 128;
/// Longest name of a disk: what the guest can be told of it.
pub const ID_BYTES_MAX: usize = ID_BYTES;
/// Sectors to which discards should be aligned: the usual block of file systems.
const DISCARD_ALIGNMENT_SECTORS: u32 = 8;

/// Called with a plain description when the host's disk fails; not at every one of many failures.
pub type Alarm = Box<dyn Fn(String) + Send>;

/// What requests go to.
pub enum Medium {
    /// An image without a second copy, or one that is only read.
    Plain(Box<dyn Storage>),
    /// A disk with a second copy.
    Copied(Disk),
}

/// A disk.
pub struct BlkDevice {
    name: String,
    medium: Medium,
    bounds: Bounds,
    alarm: Alarm,
    /// Signalled by the medium's threads when it has room again.
    room: Arc<EventFd>,
    /// The driver does not know of flushes, so every write must be safe when it is answered.
    write_through: bool,
    /// Holds data between guest and host, within one call.
    buffer: Box<[u8]>,
    counters: BlkCounters,
}

/// What a disk has done since it was built. Not part of its state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlkCounters {
    /// Reads done.
    pub reads: u64,
    /// Their bytes.
    pub read_bytes: u64,
    /// Writes done.
    pub writes: u64,
    /// Their bytes.
    pub written_bytes: u64,
    /// Flushes done.
    pub flushes: u64,
    /// Ranges discarded or made zero.
    pub ranges: u64,
    /// Requests refused: out of bounds, of a wrong length, or of an unknown kind.
    pub refused: u64,
    /// Requests that the host's disk failed.
    pub failures: u64,
    /// Chains of the guest that were no request.
    pub malformed_chains: u64,
    /// Times the guest had to wait because the standby does not have its earlier writes yet.
    pub waits: u64,
}

impl Medium {
    /// A plain disk of `storage`.
    pub fn plain(storage: impl Storage + 'static) -> Self {
        Self::Plain(Box::new(storage))
    }

    fn has_room(&self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Copied(disk) => disk.has_room(),
        }
    }

    fn storage(&self) -> &dyn Storage {
        match self {
            Self::Plain(storage) => &**storage,
            Self::Copied(disk) => disk,
        }
    }
}

impl BlkDevice {
    /// A disk named `name` of `capacity_sectors`.
    ///
    /// # Errors
    /// If the host has no descriptors left.
    pub fn new(
        name: impl Into<String>,
        medium: Medium,
        capacity_sectors: u64,
        read_only: bool,
        alarm: Alarm,
    ) -> io::Result<Self> {
        let room = Arc::new(EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?);
        if let Medium::Copied(disk) = &medium {
            let room = Arc::clone(&room);
            // Fails only if the counter is full; the device is going to look then anyway.
            disk.set_room_listener(Arc::new(move || drop(room.write(1))));
        }
        Ok(Self {
            name: name.into(),
            medium,
            bounds: Bounds {
                capacity_sectors,
                read_only,
            },
            alarm,
            room,
            write_through: true,
            buffer: vec![0; DATA_BYTES_MAX].into_boxed_slice(),
            counters: BlkCounters::default(),
        })
    }

    /// What has been done so far.
    #[must_use]
    pub fn counters(&self) -> BlkCounters {
        self.counters
    }

    /// Does one request and returns how many bytes of the chain were filled.
    fn serve(&mut self, chain: Chain<'_>, memory: &GuestRam) -> u32 {
        let Ok(request) = Request::parse(chain, memory, self.bounds) else {
            self.counters.malformed_chains += 1;
            return 0;
        };
        let done = match request.kind {
            Ok(kind) => self.perform(kind, memory),
            Err(status) => {
                self.counters.refused += 1;
                Err(status)
            }
        };
        let (status, filled) = match done {
            Ok(filled) => (Status::Ok, filled),
            Err(status) => (status, 0),
        };
        match memory.write_obj(status as u8, request.status_at) {
            Ok(()) => filled + 1,
            // Cannot happen: the address was in memory when the request was parsed.
            Err(_) => 0,
        }
    }

    /// Does what is asked and returns how many bytes were filled before the status.
    fn perform(&mut self, kind: RequestKind, memory: &GuestRam) -> Result<u32, Status> {
        match kind {
            RequestKind::Read { offset, into } => self.read(offset, &into, memory),
            RequestKind::Write { offset, from } => self.write(offset, &from, memory),
            RequestKind::Flush => self.flush(),
            RequestKind::Identify { into } => self.identify(&into, memory),
            RequestKind::Discard { offset, bytes } => {
                match self.medium.storage().discard(offset, bytes) {
                    Err(error) if error.kind() == io::ErrorKind::Unsupported => {
                        Err(Status::Unsupported)
                    }
                    done => self.finish_range("discard", offset, done),
                }
            }
            RequestKind::WriteZeroes {
                offset,
                bytes,
                may_unmap,
            } => {
                let done = self.medium.storage().write_zeroes(offset, bytes, may_unmap);
                self.finish_range("write zeros", offset, done)
            }
        }
    }

    fn read(&mut self, offset: u64, into: &Segments, memory: &GuestRam) -> Result<u32, Status> {
        let data = &mut self.buffer[..into.bytes() as usize];
        let (bytes, read) = (data.len(), self.medium.storage().read_at(offset, data));
        self.check("read", offset, read)?;
        into.scatter(memory, &self.buffer[..bytes])
            .ok_or(Status::IoError)?;
        self.counters.reads += 1;
        self.counters.read_bytes += bytes as u64;
        Ok(bytes as u32)
    }

    fn write(&mut self, offset: u64, from: &Segments, memory: &GuestRam) -> Result<u32, Status> {
        let data = &mut self.buffer[..from.bytes() as usize];
        // All of it is read before any of it is written.
        from.gather(memory, data).ok_or(Status::IoError)?;
        let bytes = data.len() as u64;
        let written = self.medium.storage().write_at(offset, data);
        self.check("write", offset, written)?;
        self.flush_if_write_through()?;
        self.counters.writes += 1;
        self.counters.written_bytes += bytes;
        Ok(0)
    }

    fn flush(&mut self) -> Result<u32, Status> {
        // A disk that is only read has nothing to make safe.
        if !self.bounds.read_only {
            let flushed = self.medium.storage().flush();
            self.check("flush", 0, flushed)?;
        }
        self.counters.flushes += 1;
        Ok(0)
    }

    fn identify(&self, into: &Segments, memory: &GuestRam) -> Result<u32, Status> {
        let mut id = [0; ID_BYTES];
        let bytes = self.name.len().min(ID_BYTES);
        id[..bytes].copy_from_slice(&self.name.as_bytes()[..bytes]);
        into.scatter(memory, &id).ok_or(Status::IoError)?;
        Ok(ID_BYTES as u32)
    }

    fn finish_range(
        &mut self,
        what: &str,
        offset: u64,
        done: io::Result<()>,
    ) -> Result<u32, Status> {
        self.check(what, offset, done)?;
        self.flush_if_write_through()?;
        self.counters.ranges += 1;
        Ok(0)
    }

    /// Makes a write safe for a driver that cannot ask for it.
    fn flush_if_write_through(&mut self) -> Result<(), Status> {
        if !self.write_through {
            return Ok(());
        }
        let flushed = self.medium.storage().flush();
        self.check("flush", 0, flushed)
    }

    /// Turns a failure of the host's disk into the guest's error and an alarm.
    fn check(&mut self, what: &str, offset: u64, done: io::Result<()>) -> Result<(), Status> {
        let Err(error) = done else { return Ok(()) };
        self.counters.failures += 1;
        let failures = self.counters.failures;
        // A guest that keeps trying must not fill the host's log.
        if failures.is_power_of_two() {
            let hint = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                    "; make room on this host, the guest sees I/O errors until then"
                }
                _ => "; the guest sees an I/O error",
            };
            let cause = std::error::Error::source(&error)
                .map_or_else(String::new, |cause| format!(": {cause}"));
            (self.alarm)(format!(
                "cannot {what} at byte {offset}: {error}{cause} (failure {failures}){hint}"
            ));
        }
        Err(Status::IoError)
    }
}

impl VirtioDevice for BlkDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_BLOCK
    }

    fn features(&self) -> u64 {
        let always = 1 << VIRTIO_BLK_F_SIZE_MAX
            | 1 << VIRTIO_BLK_F_SEG_MAX
            | 1 << VIRTIO_BLK_F_BLK_SIZE
            | 1 << VIRTIO_BLK_F_FLUSH;
        if self.bounds.read_only {
            always | 1 << VIRTIO_BLK_F_RO
        } else {
            always | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES
        }
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        // struct virtio_blk_config; geometry, topology and the cache's mode are not offered and zero.
        let mut space = [0; 60];
        space[..8].copy_from_slice(&self.bounds.capacity_sectors.to_le_bytes());
        let mut set =
            |at: usize, value: u32| space[at..at + 4].copy_from_slice(&value.to_le_bytes());
        set(8, SEGMENT_BYTES_MAX);
        set(12, SEGMENTS_MAX);
        set(20, SECTOR_BYTES as u32);
        if !self.bounds.read_only {
            set(36, RANGE_SECTORS_MAX);
            set(40, 1);
            set(44, DISCARD_ALIGNMENT_SECTORS);
            set(48, RANGE_SECTORS_MAX);
            set(52, 1);
            space[56] = 1; // write zeroes may unmap
        }
        read_space(&space, offset, data);
    }

    /// Nothing is writable without a switchable cache.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, features: u64) {
        self.write_through = features & 1 << VIRTIO_BLK_F_FLUSH == 0;
    }

    fn reset(&mut self) {
        self.write_through = true;
    }

    fn start(&mut self, _rings: Option<&mut Rings<'_>>) {}

    fn process_queue(
        &mut self,
        _queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, RingFault> {
        // Checked before a request is taken: one that has to wait stays in the ring, and the guest waits (R5).
        if !self.medium.has_room() {
            self.counters.waits += 1;
            return Ok(Progress::Done);
        }
        let chain = match rings.pop(QUEUE)? {
            Some(chain) => chain,
            None if rings.await_kick(QUEUE)? => return Ok(Progress::More(QUEUE)),
            None => return Ok(Progress::Done),
        };
        let head = chain.head_index();
        let filled = self.serve(chain, rings.memory);
        rings.push_used(QUEUE, head, filled)?;
        Ok(Progress::More(QUEUE))
    }

    fn event_sources(&self) -> Vec<EventSource> {
        vec![EventSource::Counter(self.room.as_raw_fd())]
    }

    fn process_event(
        &mut self,
        _source: usize,
        rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault> {
        // Fails only if there is nothing to read; an earlier call has seen the room then.
        let _ = self.room.read();
        rings.map_or(Ok(Progress::Done), |rings| self.process_queue(QUEUE, rings))
    }

    fn save(&self) -> Result<DeviceState, DeviceError> {
        let state = BlkState {
            capacity_sectors: self.bounds.capacity_sectors,
            read_only: self.bounds.read_only,
        };
        DeviceState::encode(&self.name, VERSION, &state)
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        let state: BlkState = state.decode(&self.name, VERSION)?;
        let here = self.bounds;
        let invalid = |what: String| DeviceError::Invalid {
            device: self.name.clone(),
            what,
        };
        if state.capacity_sectors != here.capacity_sectors {
            return Err(invalid(format!(
                "a disk of {} sectors, here it has {}",
                state.capacity_sectors, here.capacity_sectors
            )));
        }
        if state.read_only != here.read_only {
            return Err(invalid(format!(
                "a disk with read_only={}, here it has read_only={}",
                state.read_only, here.read_only
            )));
        }
        Ok(())
    }
}
