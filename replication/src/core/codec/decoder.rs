//! Turns batches back into pages, over the backup's committed memory (step ⑥).
//!
//! Must not be done here: writing memory, and trusting the peer.

use super::delta::{Delta, DeltaError};
use super::{
    BATCH_HEADER_BYTES, CodecError, KIND_DELTA, KIND_LZ4, KIND_RAW, KIND_ZERO, RECORD_HEADER_BYTES,
};
use crate::ids::{PAGE_BYTES, Page, PageIndex};
use crate::ports::PageMemory;

/// Where decoded pages go.
pub trait PageSink {
    /// The frame to decode `page` into. Its content before does not matter.
    ///
    /// # Errors
    /// If the page occurred before.
    fn frame(&mut self, page: PageIndex) -> Result<&mut Page, CodecError>;
}

/// The bytes of a batch that are not read yet.
struct Reader<'a> {
    rest: &'a [u8],
    batch_bytes: usize,
    record: u32,
}

impl<'a> Reader<'a> {
    fn offset(&self) -> usize {
        self.batch_bytes - self.rest.len()
    }

    fn missing(&self, missing: usize) -> CodecError {
        CodecError::Truncated {
            record: self.record,
            offset: self.batch_bytes,
            missing,
        }
    }

    fn take(&mut self, bytes: usize) -> Result<&'a [u8], CodecError> {
        let (head, tail) = self
            .rest
            .split_at_checked(bytes)
            .ok_or_else(|| self.missing(bytes - self.rest.len()))?;
        self.rest = tail;
        Ok(head)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], CodecError> {
        let (head, tail) = self
            .rest
            .split_first_chunk()
            .ok_or_else(|| self.missing(N - self.rest.len()))?;
        self.rest = tail;
        Ok(*head)
    }
}

/// Decodes a batch into `sink`, over the pages in `base`. Returns how many pages it held.
///
/// # Errors
/// If the batch is not complete and valid. What the sink already got is then useless.
pub fn decode(
    batch: &[u8],
    base: &dyn PageMemory,
    sink: &mut dyn PageSink,
) -> Result<u32, CodecError> {
    let empty = CodecError::Empty { bytes: batch.len() };
    let (header, rest) = batch
        .split_first_chunk::<BATCH_HEADER_BYTES>()
        .ok_or(empty.clone())?;
    let pages = u32::from_le_bytes(*header);
    if pages == 0 {
        return Err(empty);
    }
    let mut reader = Reader {
        rest,
        batch_bytes: batch.len(),
        record: 0,
    };
    for record in 0..pages {
        reader.record = record;
        decode_record(&mut reader, base, sink)?;
    }
    if reader.rest.is_empty() {
        Ok(pages)
    } else {
        Err(CodecError::LeftOver {
            bytes: reader.rest.len(),
            records: pages,
        })
    }
}

fn decode_record(
    reader: &mut Reader<'_>,
    base: &dyn PageMemory,
    sink: &mut dyn PageSink,
) -> Result<(), CodecError> {
    let offset = reader.offset();
    let head = u64::from_le_bytes(reader.array::<RECORD_HEADER_BYTES>()?);
    let (page, kind) = (PageIndex(head >> 8), head as u8);
    if !base.layout().contains(page) {
        return Err(CodecError::NotMemory { page, offset });
    }
    let malformed = |what| CodecError::Malformed { page, offset, what };
    let frame = sink.frame(page)?;
    match kind {
        KIND_ZERO => frame.fill(0),
        KIND_DELTA => {
            let expected = u32::from_le_bytes(reader.array()?);
            let failed = |error, reader: &Reader<'_>| match error {
                DeltaError::Missing(bytes) => reader.missing(bytes),
                DeltaError::Malformed(what) => malformed(what),
            };
            let (delta, rest) = Delta::read(reader.rest).map_err(|error| failed(error, reader))?;
            read_base(base, page, frame)?;
            reader.rest = delta
                .apply(rest, frame)
                .map_err(|error| failed(error, reader))?;
            check(page, frame, expected)?;
        }
        KIND_LZ4 => {
            let length = usize::from(u16::from_le_bytes(reader.array()?));
            let compressed = reader.take(length)?;
            match lz4_flex::block::decompress_into(compressed, frame) {
                Ok(PAGE_BYTES) => {}
                Ok(_) => return Err(malformed("compressed page is not 4096 bytes long")),
                Err(_) => return Err(malformed("compressed page does not decompress")),
            }
        }
        KIND_RAW => *frame = reader.array()?,
        _ => return Err(CodecError::UnknownKind { page, offset, kind }),
    }
    Ok(())
}

fn read_base(base: &dyn PageMemory, page: PageIndex, frame: &mut Page) -> Result<(), CodecError> {
    base.read_page(page, frame)
        .map_err(|error| CodecError::Unreadable {
            page,
            why: error.to_string(),
        })
}

fn check(page: PageIndex, frame: &Page, expected: u32) -> Result<(), CodecError> {
    let found = crc32fast::hash(frame);
    if found == expected {
        Ok(())
    } else {
        Err(CodecError::BaseDiffers {
            page,
            expected,
            found,
        })
    }
}
