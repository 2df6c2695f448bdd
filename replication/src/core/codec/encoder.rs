//! Turns pages into batches, off the guest's critical path (step ④).
//!
//! Must not be done here: blocking, and keeping more pages than the cache may hold.

use bytes::{BufMut, Bytes, BytesMut};
use lz4_flex::block::{CompressTable, compress_into_with_table, get_maximum_output_size};

use super::cache::PageCache;
use super::delta::Delta;
use super::{
    BATCH_BYTES_MAX, BATCH_HEADER_BYTES, CodecStats, KIND_DELTA, KIND_LZ4, KIND_RAW, KIND_ZERO,
    RECORD_BYTES_MAX, RECORD_HEADER_BYTES,
};
use crate::ids::{PAGE_BYTES, Page, PageIndex};

static ZERO_PAGE: Page = [0; PAGE_BYTES];

/// A delta of at most this many bytes is used without trying compression.
const DELTA_GOOD_BYTES: usize = PAGE_BYTES / 4;
/// Compression must yield fewer bytes than this to be worth the backup's time.
const LZ4_GOOD_BYTES: usize = PAGE_BYTES / 8 * 7;
/// After pages that did not compress, at most this many are sent without trying.
const LZ4_SKIP_PAGES_MAX: u32 = 63;

/// Turns pages into records, each in the smallest form that it finds: zero, changed words, compressed
/// or raw. A page that has not changed since it was sent needs no record.
///
/// It remembers what it sent. The backup has the same only as long as every epoch arrives. Call
/// [`Encoder::forget`] whenever the link changes or something encoded was not sent.
pub struct Encoder {
    /// Every page is sent as it is.
    plain: bool,
    cache: PageCache,
    table: CompressTable,
    scratch: Vec<u8>,
    lz4_skip_pages: u32,
    lz4_backoff_pages: u32,
    stats: CodecStats,
}

/// Collects records until the batch is full.
#[derive(Debug)]
pub struct BatchWriter {
    body: BytesMut,
    pages: u32,
    bytes_max: usize,
}

/// What became of a page.
#[derive(Debug)]
#[must_use = "a frame is to be used again"]
pub struct EncodedPage {
    /// A frame for the next capture; `None` while the cache is still growing.
    pub spare: Option<Box<Page>>,
    /// The page differs from what was sent before. `false` also if that is not remembered.
    pub changed: bool,
}

/// A finished batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The body of a `SyncPages` or `EpochPages` message.
    pub body: Bytes,
    /// How many pages it holds.
    pub pages: u32,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder")
            .field("cached_pages", &self.cache.len())
            .field("stats", &self.stats)
            .finish_non_exhaustive()
    }
}

impl Encoder {
    /// An encoder that remembers at most `cache_pages_max` pages (4 KiB of memory each).
    #[must_use]
    pub fn new(cache_pages_max: usize) -> Self {
        Self {
            plain: false,
            cache: PageCache::new(cache_pages_max),
            table: CompressTable::default(),
            scratch: vec![0; get_maximum_output_size(PAGE_BYTES)],
            lz4_skip_pages: 0,
            lz4_backoff_pages: 0,
            stats: CodecStats::default(),
        }
    }

    /// An encoder that sends each page as it is, and remembers none.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            plain: true,
            ..Self::new(0)
        }
    }

    /// Appends `page`, whose content is in `frame`, to a batch that is not full, unless the backup has it
    /// already. Keeps the frame and returns another one.
    pub fn encode(
        &mut self,
        page: PageIndex,
        frame: Box<Page>,
        batch: &mut BatchWriter,
    ) -> EncodedPage {
        debug_assert!(!batch.is_full(), "finish a full batch first");
        let before = batch.body.len();
        if self.plain {
            let kind = batch.raw(page, &frame);
            self.stats.count(kind, batch.body.len() - before);
            return EncodedPage {
                spare: Some(frame),
                changed: false,
            };
        }
        let zero = *frame == ZERO_PAGE;
        let kind;
        let spare;
        let mut changed = false;
        if let Some(old) = self.cache.get(page) {
            if *old == frame {
                self.stats.unchanged_pages += 1;
                return EncodedPage {
                    spare: Some(frame),
                    changed,
                };
            }
            changed = true;
            kind = if zero {
                batch.zero(page)
            } else {
                let delta = Delta::between(old, &frame);
                let delta_bytes = 4 + delta.encoded_bytes();
                let limit = delta_bytes.min(LZ4_GOOD_BYTES);
                let compressed = (delta_bytes > DELTA_GOOD_BYTES)
                    .then(|| {
                        compress(
                            &frame,
                            limit,
                            &mut self.table,
                            &mut self.scratch,
                            &mut self.lz4_skip_pages,
                            &mut self.lz4_backoff_pages,
                        )
                    })
                    .flatten();
                match compressed {
                    Some(compressed) => batch.lz4(page, compressed),
                    None if delta_bytes < PAGE_BYTES => batch.delta(page, &delta, old, &frame),
                    None => batch.raw(page, &frame),
                }
            };
            spare = Some(std::mem::replace(old, frame));
        } else {
            kind = if zero {
                batch.zero(page)
            } else {
                match compress(
                    &frame,
                    LZ4_GOOD_BYTES,
                    &mut self.table,
                    &mut self.scratch,
                    &mut self.lz4_skip_pages,
                    &mut self.lz4_backoff_pages,
                ) {
                    Some(compressed) => batch.lz4(page, compressed),
                    None => batch.raw(page, &frame),
                }
            };
            spare = self.cache.insert(page, frame);
        }
        self.stats.count(kind, batch.body.len() - before);
        EncodedPage { spare, changed }
    }

    /// Forgets what the backup has: the backup or the link is another one, or an encoded epoch was
    /// not sent. The frames stay for later use.
    pub fn forget(&mut self) {
        self.cache.forget();
    }

    /// What this encoder has encoded so far.
    #[must_use]
    pub fn stats(&self) -> CodecStats {
        self.stats
    }
}

impl BatchWriter {
    /// A writer of batches of at most `bytes_max` bytes, clamped to the range from one page to
    /// [`BATCH_BYTES_MAX`].
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self {
            body: BytesMut::new(),
            pages: 0,
            bytes_max: bytes_max.clamp(BATCH_HEADER_BYTES + RECORD_BYTES_MAX, BATCH_BYTES_MAX),
        }
    }

    /// Whether the next page might not fit.
    #[must_use]
    pub fn is_full(&self) -> bool {
        self.body.len().max(BATCH_HEADER_BYTES) + RECORD_BYTES_MAX > self.bytes_max
    }

    /// Whether no page has been appended since the last batch ended.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pages == 0
    }

    /// Ends the batch and begins the next one; `None` if no page was appended.
    pub fn finish(&mut self) -> Option<Batch> {
        let pages = std::mem::take(&mut self.pages);
        if pages == 0 {
            return None;
        }
        self.body[..BATCH_HEADER_BYTES].copy_from_slice(&pages.to_le_bytes());
        Some(Batch {
            body: self.body.split().freeze(),
            pages,
        })
    }

    fn record(&mut self, kind: u8, page: PageIndex) -> u8 {
        if self.pages == 0 {
            self.body.reserve(self.bytes_max);
            self.body.put_u32_le(0);
        }
        self.pages += 1;
        self.body.put_u64_le(page.0 << 8 | u64::from(kind));
        kind
    }

    fn zero(&mut self, page: PageIndex) -> u8 {
        self.record(KIND_ZERO, page)
    }

    fn delta(&mut self, page: PageIndex, delta: &Delta, old: &Page, new: &Page) -> u8 {
        let kind = self.record(KIND_DELTA, page);
        self.body.put_u32_le(crc32fast::hash(new));
        delta.write(old, new, &mut self.body);
        kind
    }

    fn lz4(&mut self, page: PageIndex, compressed: &[u8]) -> u8 {
        let kind = self.record(KIND_LZ4, page);
        self.body.put_u16_le(compressed.len() as u16);
        self.body.put_slice(compressed);
        kind
    }

    fn raw(&mut self, page: PageIndex, frame: &Page) -> u8 {
        let kind = self.record(KIND_RAW, page);
        self.body.put_slice(frame);
        kind
    }
}

/// The page, compressed to fewer than `limit` bytes. Among pages that do not compress, it tries
/// fewer and fewer, so noise costs almost nothing.
fn compress<'a>(
    frame: &Page,
    limit: usize,
    table: &mut CompressTable,
    scratch: &'a mut [u8],
    skip_pages: &mut u32,
    backoff_pages: &mut u32,
) -> Option<&'a [u8]> {
    if *skip_pages > 0 {
        *skip_pages -= 1;
        return None;
    }
    let length = compress_into_with_table(frame, scratch, table).unwrap_or(PAGE_BYTES);
    if length > LZ4_GOOD_BYTES {
        *backoff_pages = (*backoff_pages * 2 + 1).min(LZ4_SKIP_PAGES_MAX);
        *skip_pages = *backoff_pages;
    } else {
        *backoff_pages = 0;
    }
    (length < limit).then(|| &scratch[..length])
}

const _: () = assert!(RECORD_HEADER_BYTES + 4 + BATCH_HEADER_BYTES < BATCH_BYTES_MAX);
