//! The dirty-block map of an image, in a file beside it. It says which blocks may differ from the other side's.
//!
//! A block is marked durably before it is written. The whole resynchronisation relies on that. A mark is
//! cleared once the block is durable on the other side. Clearing a mark need not be durable.
//!
//! The guest waits while a mark is made durable, so one flush marks what other writes wait for, too (and see `thrift.rs`).
//!
//! A map belongs to one image, and knows whether that was changed by anybody else (`stamp.rs`). A map whose image
//! was replaced or changed says nothing about it any more, so all of it will be copied.
//!
//! What must not be done here: clearing a mark because of time, or of an epoch that is not durable.

use std::io;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::bits::BitSet;
use super::header::{BITS_AT, HEADER_BYTES, Header, SLOTS, kept_history, kept_identity};
use super::sectors::{self, SECTOR_BLOCKS};
use super::stamp::{LEASE, STAMP_AT, STAMP_BYTES, SYNC_EVERY, Stamp};
use super::storage::Storage;
use super::thrift::Thrift;
use crate::core::disk::PairId;
use crate::disk::DiskError;
use crate::disk::place::{JournalId, Place, START};
use crate::files::{self, HostFile, HostFiles};
use crate::ids::EpochId;
use crate::ports::disks::History;

/// How many blocks are marked ahead of a write that continues the one before it.
const AHEAD_BLOCKS: u64 = 16;
/// The map of one image.
pub(crate) struct DirtyMap {
    path: PathBuf,
    files: Arc<dyn HostFiles>,
    /// None as long as there is no usable file.
    file: Option<Box<dyn HostFile>>,
    damaged: bool,
    header: Header,
    /// What tells the image that is open now from others.
    identity: String,
    /// Why nothing is known of the image, although there is a map. The file still has what it says.
    distrust: Option<String>,
    /// The image may be written until then, as the file's stamp says.
    stamped_until_ns: u64,
    /// When the stamp was made durable last.
    stamp_synced_ns: u64,
    /// Blocks that are marked durably in the file.
    bits: BitSet,
    /// Blocks written in the epochs since the last rotation.
    fresh: BitSet,
    /// Blocks written before that, up to `old_epoch`. Their marks are cleared when it is durable.
    old: BitSet,
    old_epoch: Option<EpochId>,
    /// Blocks with unknown content, after an I/O error.
    unsure: BitSet,
    /// Blocks that were marked when a flush failed. The host may lose them when it drops its cache,
    /// and a later flush proves nothing.
    doubted: BitSet,
    /// Number of the session: a synchronisation and the epochs after it.
    session: u64,
    /// The backup has taken the candidate.
    joined: bool,
    rotated_at: Option<Instant>,
    thrift: Thrift,
    /// The block after the last write.
    next: u64,
}

impl DirtyMap {
    /// Opens the map at `path` for an image. Without a file, the image belongs to no pair.
    pub(crate) fn open(
        path: PathBuf,
        image: &dyn Storage,
        files: Arc<dyn HostFiles>,
    ) -> Result<Self, DiskError> {
        let disk_bytes = image.bytes();
        let header = Header::new(disk_bytes);
        let blocks = disk_bytes.div_ceil(header.block_bytes);
        let empty = || BitSet::new(blocks);
        let mut map = Self {
            path,
            files,
            file: None,
            damaged: false,
            header,
            identity: String::new(),
            distrust: None,
            stamped_until_ns: 0,
            stamp_synced_ns: 0,
            bits: empty(),
            fresh: empty(),
            old: empty(),
            old_epoch: None,
            unsure: empty(),
            doubted: empty(),
            session: 0,
            joined: false,
            rotated_at: None,
            thrift: Thrift::default(),
            next: u64::MAX,
        };
        let identity = image.identity();
        let identity = identity.map_err(|error| map.failed("identify the image of", error))?;
        map.identity = kept_identity(identity.unwrap_or_default());
        let opened = files::open_existing(&*map.files, &map.path);
        if let Some(file) = opened.map_err(|error| map.failed("open", error))? {
            let loaded = map.load(file).and_then(|()| map.compare(image));
            loaded.map_err(|error| map.failed("read", error))?;
        }
        Ok(map)
    }

    /// Finds out whether the image is the one that the file describes, as it was left.
    fn compare(&mut self, image: &dyn Storage) -> io::Result<()> {
        let Some(file) = &self.file else {
            return Ok(());
        };
        let mut raw = [0; STAMP_BYTES];
        file.read_at(STAMP_AT, &mut raw)?;
        let (was, is) = (&self.header.identity, &self.identity);
        let stamp = Stamp::decode(&raw);
        let distrust = match image.changed()? {
            _ if was != is => format!("it is another one (it was {was}, it is {is})"),
            None => return Ok(()),
            Some(changed) => {
                let boot = self.files.boot();
                if stamp.is_some_and(|stamp| stamp.explains(changed, boot)) {
                    return Ok(());
                }
                "it was changed by somebody else".into()
            }
        };
        self.distrust = Some(distrust);
        (self.header.current, self.header.candidate) = (None, None);
        self.bits.clear();
        Ok(())
    }

    /// Why the image is not the one that its file describes.
    pub(crate) fn distrust(&self) -> Option<&str> {
        self.distrust.as_deref()
    }

    /// If the image is not the one that the file describes, the file is to describe this one.
    pub(crate) fn adopt(&mut self) -> Result<(), DiskError> {
        if self.distrust.is_some() {
            self.store()?;
        }
        Ok(())
    }

    /// The image belongs to no pair any more.
    pub(crate) fn forget_pair(&mut self) -> Result<(), DiskError> {
        if self.ids().is_empty() {
            return Ok(());
        }
        (self.header.current, self.header.candidate) = (None, None);
        self.store()
    }

    // ---- the guest's history ----

    /// What is known of the guest that the image belongs to.
    pub(crate) fn history(&self) -> Option<&History> {
        self.header.history.as_ref()
    }

    /// The image belongs to a guest of this history. Becomes durable with the next change of the
    /// header.
    pub(crate) fn learn(&mut self, history: &History) {
        self.header.history = Some(kept_history(history));
    }

    /// The same, durably.
    pub(crate) fn note(&mut self, history: &History) -> Result<(), DiskError> {
        let before = self.header.history.clone();
        self.learn(history);
        if self.header.history == before && self.file.is_some() {
            return Ok(());
        }
        let stored = self.store();
        // Another attempt must not believe that it is there.
        stored.inspect_err(|_| self.header.history = before)
    }

    // ---- who changes the image ----

    /// This process begins to use the image as one of a pair.
    pub(crate) fn in_use(&mut self, image: &dyn Storage) -> Result<(), DiskError> {
        let stamped = self.stamp(image, false);
        let synced = stamped.and_then(|()| self.sync_stamp());
        synced.map_err(|error| self.failed("write", error))
    }

    /// The image is about to be written. Does nothing most of the time.
    pub(crate) fn about_to_write(&mut self, image: &dyn Storage) {
        let now_ns = self.files.now_ns();
        if !self.describes_image() || now_ns < self.stamped_until_ns {
            return;
        }
        let mut stamped = self.stamp(image, false);
        if now_ns.saturating_sub(self.stamp_synced_ns) >= SYNC_EVERY.as_nanos() as u64 {
            stamped = stamped.and_then(|()| self.sync_stamp());
        }
        if let Err(error) = stamped {
            // At worst, the image is distrusted and copied as a whole some day.
            let path = self.path.display();
            tracing::debug!("cannot note in the map {path} that its image is written: {error}");
        }
    }

    fn sync_stamp(&mut self) -> io::Result<()> {
        self.opened()?.sync()?;
        self.stamp_synced_ns = self.files.now_ns();
        Ok(())
    }

    /// This process is done with the image.
    pub(crate) fn close(&mut self, image: &dyn Storage) {
        if self.describes_image() && self.stamped_until_ns > 0 {
            let _ = self.stamp(image, true);
        }
    }

    fn describes_image(&self) -> bool {
        self.file.is_some() && self.distrust.is_none()
    }

    fn stamp(&mut self, image: &dyn Storage, closed: bool) -> io::Result<()> {
        let Some(changed) = image.changed()? else {
            return Ok(());
        };
        // The image's host may have a clock of its own.
        let now = self.files.now_ns().max(changed.anything_ns);
        let lease = if closed { 0 } else { LEASE.as_nanos() as u64 };
        let stamp = Stamp {
            closed,
            until_ns: now.saturating_add(lease),
            content_ns: changed.content_ns,
            boot: self.files.boot(),
        };
        self.opened()?.write_at(STAMP_AT, &stamp.encode())?;
        self.stamped_until_ns = stamp.until_ns;
        Ok(())
    }

    fn load(&mut self, file: Box<dyn HostFile>) -> io::Result<()> {
        let found = Header::read_slots(&*file)?;
        let path = self.path.display();
        if let Some(bad) = found.iter().position(Option::is_none)
            && found.iter().any(Option::is_some)
        {
            let at = SLOTS[bad];
            tracing::warn!("the map {path} has no valid header at byte {at}: the other one counts");
        }
        let Some(header) = Header::newest(found) else {
            tracing::warn!("the map {path} is damaged: none of its headers is valid");
            self.damaged = true;
            return Ok(());
        };
        let same = (header.disk_bytes, header.block_bytes)
            == (self.header.disk_bytes, self.header.block_bytes);
        if !same {
            // Only whether it was whole, and what it needs, still counts.
            tracing::warn!(
                "the image of the map {path} had {} bytes and has {}: it is no part of a pair any more",
                header.disk_bytes,
                self.header.disk_bytes
            );
            self.header.unfinished = header.unfinished;
            self.header.journal = header.journal;
            self.header.must_reach = header.must_reach;
            self.header.history = header.history;
            return Ok(());
        }
        let damaged = sectors::read(&*file, &mut self.bits)?;
        if damaged > 0 {
            tracing::warn!(
                "{damaged} sectors of the map {path} are damaged: their blocks count as changed, and will be copied"
            );
        }
        self.header = header;
        self.file = Some(file);
        Ok(())
    }

    pub(crate) fn block_bytes(&self) -> u64 {
        self.header.block_bytes
    }

    pub(crate) fn is_damaged(&self) -> bool {
        self.damaged
    }

    pub(crate) fn is_unfinished(&self) -> bool {
        self.header.unfinished
    }

    /// The pairs this image may belong to.
    pub(crate) fn ids(&self) -> Vec<PairId> {
        let ids = [self.header.current, self.header.candidate];
        ids.into_iter().flatten().collect()
    }

    /// The marked blocks.
    pub(crate) fn bits(&self) -> &BitSet {
        &self.bits
    }

    /// The marks as bytes, without trailing zeros.
    pub(crate) fn bits_trimmed(&self) -> Vec<u8> {
        let mut bytes = self.bits.bytes(0..self.bits.len().div_ceil(8) as usize);
        bytes.truncate(bytes.iter().rposition(|b| *b != 0).map_or(0, |at| at + 1));
        bytes
    }

    /// The blocks that a range of bytes touches.
    pub(crate) fn blocks(&self, offset: u64, bytes: u64) -> Range<u64> {
        let block = self.header.block_bytes;
        offset / block..(offset + bytes).div_ceil(block)
    }

    /// Marks what is about to be written. The mark is durable when this returns. If that takes a flush, `later` says what
    /// else will be written soon.
    pub(crate) fn mark(
        &mut self,
        offset: u64,
        bytes: u64,
        later: impl FnOnce() -> Vec<(u64, u64)>,
    ) -> Result<(), DiskError> {
        if self.ids().is_empty() {
            return Ok(()); // Nobody is to be compared with.
        }
        let touched = self.blocks(offset, bytes);
        self.fresh.insert(touched.clone());
        let goes_on = self.next == touched.start || self.next == touched.start + 1;
        self.next = touched.end;
        if self.bits.contains_all(touched.clone()) {
            return Ok(());
        }
        let ahead = if goes_on { AHEAD_BLOCKS } else { 0 };
        let before = self.bits.clone();
        let marked = self.mark_around(touched.start..touched.end + ahead, &later());
        marked.map_err(|error| {
            self.bits = before;
            self.failed("mark blocks in", error)
        })
    }

    /// Marks these blocks, and what lies around them, by one flush.
    fn mark_around(&mut self, first: Range<u64>, later: &[(u64, u64)]) -> io::Result<()> {
        let reach = self.thrift.reach(self.header.block_bytes);
        let later = later.iter().map(|(at, bytes)| self.blocks(*at, *bytes));
        let ranges: Vec<_> = std::iter::once(first).chain(later).collect();
        for range in ranges {
            let start = range.start - range.start % reach;
            let blocks = start..range.end.next_multiple_of(reach).min(self.bits.len());
            if self.bits.contains_all(blocks.clone()) {
                continue;
            }
            self.bits.insert(blocks.clone());
            // Otherwise, blocks marked ahead would needlessly lose their marks soon.
            self.fresh.insert(blocks.clone());
            self.write_bits(blocks)?;
        }
        let began_ns = self.files.now_ns();
        self.opened()?.sync()?;
        (self.thrift).flushed(self.files.now_ns().saturating_sub(began_ns));
        Ok(())
    }

    /// The content of these blocks is unknown, so they stay marked.
    pub(crate) fn unsure(&mut self, offset: u64, bytes: u64) {
        let touched = self.blocks(offset, bytes);
        self.unsure.insert(touched);
    }

    /// A flush of the image failed. Blocks marked now stay marked until a copy onto this image is
    /// whole, or this process ends.
    pub(crate) fn doubt(&mut self) {
        self.doubted.unite(&self.bits);
    }

    // ---- the side that runs the guest ----

    /// A synchronisation with `peer` begins, towards the pair `candidate`. Returns the id by which
    /// the two images are a pair already, if any.
    pub(crate) fn begin_session(
        &mut self,
        session: u64,
        peer: &[PairId],
        candidate: PairId,
    ) -> Result<Option<PairId>, DiskError> {
        // The peer took the last candidate, and the report did not reach this side.
        if let Some(taken) = self.header.candidate.filter(|id| peer.contains(id)) {
            self.header.current = Some(taken);
        }
        self.header.candidate = Some(candidate);
        self.session = session;
        self.fresh.clear();
        self.old.clear();
        // Their content is copied now, or the copy fails.
        self.unsure.clear();
        (self.old_epoch, self.joined, self.rotated_at) = (None, false, None);
        self.store()?;
        Ok(self.header.current.filter(|id| peer.contains(id)))
    }

    /// `epoch` ends. A write that is `under_way`, at an offset and of so many bytes, belongs to a later one.
    /// Rotations are at least `kept` apart, and further if flushes are slow.
    pub(crate) fn rotate(
        &mut self,
        epoch: EpochId,
        under_way: Option<(u64, u64)>,
        now: Instant,
        kept: Duration,
    ) {
        let kept = kept.max(self.thrift.kept());
        let waits = self.old_epoch.is_some();
        let early = self
            .rotated_at
            .is_some_and(|at| now.saturating_duration_since(at) < kept);
        if waits || early || self.fresh.is_empty() {
            return;
        }
        std::mem::swap(&mut self.old, &mut self.fresh);
        self.fresh.clear();
        if let Some((offset, bytes)) = under_way {
            self.fresh.insert(self.blocks(offset, bytes));
        }
        self.old_epoch = Some(epoch);
        self.rotated_at = Some(now);
    }

    /// Whether marks may be cleared now that `epoch` of `session` is durable on the other side's
    /// image.
    pub(crate) fn may_clear(&self, session: u64, epoch: EpochId) -> bool {
        let passed = self.old_epoch.is_some_and(|old| old <= epoch);
        session == self.session && epoch.0 > 0 && (passed || !self.joined)
    }

    /// Everything up to `epoch` of `session` is durable on both sides' images.
    pub(crate) fn durable(&mut self, session: u64, epoch: EpochId) -> Result<(), DiskError> {
        if !self.may_clear(session, epoch) {
            return Ok(());
        }
        if !self.joined {
            let before = self.header.clone();
            if let Some(candidate) = self.header.candidate.take() {
                self.header.current = Some(candidate);
                // As long as the file has the old id, the marks also serve the old pair.
                if let Err(error) = self.store() {
                    self.header = before;
                    return Err(error);
                }
            }
            self.joined = true;
        }
        if self.old_epoch.is_some_and(|old| old <= epoch) {
            self.old.clear();
            self.old_epoch = None;
        }
        let mut left = self.fresh.clone();
        left.unite(&self.old);
        left.unite(&self.unsure);
        left.unite(&self.doubted);
        self.replace_bits(left)
    }

    // ---- the copy ----

    /// The image is an unfinished copy from now on. `from` is the pair it belongs to, unless all of
    /// it will be replaced.
    pub(crate) fn begin_copy(
        &mut self,
        from: Option<PairId>,
        journal: JournalId,
    ) -> Result<(), DiskError> {
        self.header.unfinished = true;
        self.header.current = from;
        self.header.candidate = None;
        self.header.journal = Some(journal);
        self.header.must_reach = START;
        self.store()
    }

    /// The journal without which the image must not be used.
    pub(crate) fn journal(&self) -> Option<JournalId> {
        self.header.journal
    }

    /// Where the journal must bring the image before it is used.
    pub(crate) fn must_reach(&self) -> Place {
        self.header.must_reach
    }

    /// The journal must bring the image to `place` from now on, durably.
    pub(crate) fn require(&mut self, place: Place) -> Result<(), DiskError> {
        if self.header.must_reach == place {
            return Ok(());
        }
        let before = std::mem::replace(&mut self.header.must_reach, place);
        let stored = self.store();
        // Another attempt must not believe that it is there.
        stored.inspect_err(|_| self.header.must_reach = before)
    }

    /// All that the journal has for the image is on it durably.
    pub(crate) fn journal_done(&mut self) -> Result<(), DiskError> {
        if self.header.journal.is_none() {
            return Ok(());
        }
        let before = (self.header.journal.take(), self.header.must_reach);
        self.header.must_reach = START;
        let stored = self.store();
        stored.inspect_err(|_| (self.header.journal, self.header.must_reach) = before)
    }

    /// The image is durably whole and belongs to `pair`.
    pub(crate) fn finish_copy(&mut self, pair: PairId) -> Result<(), DiskError> {
        self.header.unfinished = false;
        self.header.current = Some(pair);
        self.header.candidate = None;
        self.store()?;
        self.fresh.clear();
        self.old.clear();
        self.old_epoch = None;
        self.unsure.clear();
        self.doubted.clear();
        self.replace_bits(BitSet::new(self.bits.len()))
    }

    // ---- the file ----

    /// Writes the header durably. Creates the file if there is none.
    fn store(&mut self) -> Result<(), DiskError> {
        let next = Header {
            number: self.header.number + 1,
            identity: self.identity.clone(),
            ..self.header.clone()
        };
        let header = next.encode();
        let slot = SLOTS[(next.number % 2) as usize];
        let stored = match &self.file {
            Some(file) => file.write_at(slot, &header).and_then(|()| file.sync()),
            None => {
                let mut content = vec![0; BITS_AT as usize];
                for slot in SLOTS {
                    content[slot as usize..][..HEADER_BYTES].copy_from_slice(&header);
                }
                content.extend(sectors::encode_all(&self.bits));
                let created = files::replace(&*self.files, &self.path, &content);
                created.map(|file| self.file = Some(file))
            }
        };
        // After a failure, the next header goes to the same slot: the other one may have the only good one.
        stored.map_err(|error| self.failed("write", error))?;
        self.header = next;
        self.damaged = false;
        self.distrust = None;
        // It need not be durable, and a failure takes nothing away: this header is stored.
        let mut others = SLOTS.into_iter().filter(|other| *other != slot);
        let _ = others.try_for_each(|other| self.opened()?.write_at(other, &header));
        Ok(())
    }

    /// Changes the marks, without a sync. A cleared mark may come back, which does no harm.
    fn replace_bits(&mut self, bits: BitSet) -> Result<(), DiskError> {
        let before = std::mem::replace(&mut self.bits, bits);
        for start in (0..self.bits.len()).step_by(SECTOR_BLOCKS as usize) {
            let blocks = start..(start + SECTOR_BLOCKS).min(self.bits.len());
            let bytes = (start / 8) as usize..blocks.end.div_ceil(8) as usize;
            if before.bytes(bytes.clone()) != self.bits.bytes(bytes) {
                let written = self.write_bits(blocks);
                written.map_err(|error| self.failed("clear blocks in", error))?;
            }
        }
        Ok(())
    }

    fn write_bits(&self, blocks: Range<u64>) -> io::Result<()> {
        sectors::write(self.opened()?, &self.bits, blocks)
    }

    fn opened(&self) -> io::Result<&dyn HostFile> {
        let file = self.file.as_deref();
        file.ok_or_else(|| io::Error::other("an image that belongs to a pair has no map"))
    }

    fn failed(&self, what: &'static str, source: io::Error) -> DiskError {
        DiskError::File {
            path: self.path.clone(),
            what,
            source,
        }
    }
}
