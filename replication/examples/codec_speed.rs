//! Prints what the page codec costs a page, by what the guest did to it. A quick look, not a benchmark.
//!
//! `cargo run --release -p understudy-replication --example codec_speed`
#![forbid(unsafe_code)]

use std::time::Instant;

use understudy_replication::core::codec::{
    BATCH_BYTES_DEFAULT, Batch, BatchWriter, CodecError, Decoder, Encoder, PageSink,
};
use understudy_replication::ids::{PAGE_BYTES, Page, PageIndex};
use understudy_replication::page_set::{MemoryLayout, Region};
use understudy_replication::ports::{MachineError, PageMemory};

const PAGES: u64 = 4096;
const ROUNDS: u32 = 20;

/// What a page holds.
type Content = fn(u64) -> Page;

/// The backup's memory: only read here.
struct Base(MemoryLayout, Vec<Page>);

impl PageMemory for Base {
    fn layout(&self) -> &MemoryLayout {
        &self.0
    }
    fn read_page(&self, page: PageIndex, into: &mut Page) -> Result<(), MachineError> {
        *into = self.1[page.0 as usize];
        Ok(())
    }
    fn write_page(&self, page: PageIndex, _: &Page) -> Result<(), MachineError> {
        Err(MachineError::new(format!("{page}: not written here")))
    }
    fn clear(&self) -> Result<(), MachineError> {
        Err(MachineError::new("not cleared here"))
    }
}

struct OneFrame(Box<Page>);

impl PageSink for OneFrame {
    fn frame(&mut self, _: PageIndex) -> Result<&mut Page, CodecError> {
        Ok(&mut self.0)
    }
}

fn noise(seed: u64) -> Page {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut page = [0; PAGE_BYTES];
    for word in page.chunks_exact_mut(8) {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        word.copy_from_slice(&state.to_le_bytes());
    }
    page
}

/// What an ordinary page of program data is like: small numbers, pointers, text.
fn data(seed: u64) -> Page {
    let mut page = noise(seed);
    for (number, word) in page.chunks_exact_mut(8).enumerate() {
        match number % 4 {
            0 => word[3..].fill(0),
            1 => word[4..].copy_from_slice(&[0xff, 0x7f, 0, 0]),
            _ => word.copy_from_slice(b"some tex"),
        }
    }
    page
}

fn main() {
    println!(
        "{:<22}{:>12}{:>12}{:>14}",
        "guest wrote", "encode ns", "decode ns", "bytes a page"
    );
    let before: Content = noise;
    let cases: [(&str, Content, Content); 7] = [
        ("the same", before, noise),
        ("one word", before, |page| {
            let mut content = noise(page);
            content[(page as usize * 8) % 4096] ^= 1;
            content
        }),
        ("32 words apart", before, |page| {
            let mut content = noise(page);
            content.iter_mut().step_by(128).for_each(|byte| *byte ^= 1);
            content
        }),
        ("all words", before, |page| noise(page + 1_000_000)),
        ("program data", before, data),
        ("zeroes", before, |_| [0; PAGE_BYTES]),
        ("ones", before, |_| [1; PAGE_BYTES]),
    ];
    for (name, before, after) in cases {
        let layout = MemoryLayout::new(vec![Region {
            first: PageIndex(0),
            pages: PAGES,
        }]);
        let base = Base(layout, (0..PAGES).map(before).collect());
        let mut encoder = Encoder::new(PAGES as usize);
        let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
        let (mut encode_ns, mut batches) = (0, Vec::new());
        for _ in 0..ROUNDS {
            run(&mut encoder, &mut writer, before);
            (encode_ns, batches) = {
                let (ns, batches) = run(&mut encoder, &mut writer, after);
                (encode_ns + ns, batches)
            };
        }
        let (mut decoder, mut sink) = (Decoder::new(), OneFrame(Box::new([0; PAGE_BYTES])));
        let start = Instant::now();
        for batch in (0..ROUNDS).flat_map(|_| &batches) {
            decoder
                .decode(&batch.body, &base, &mut sink)
                .expect("valid");
        }
        let decode_ns = start.elapsed().as_nanos();
        let pages = u128::from(PAGES) * u128::from(ROUNDS);
        let bytes: usize = batches.iter().map(|batch| batch.body.len()).sum();
        println!(
            "{name:<22}{:>12}{:>12}{:>14}",
            encode_ns / pages,
            decode_ns / pages,
            bytes as u64 / PAGES
        );
    }
}

fn run(
    encoder: &mut Encoder,
    writer: &mut BatchWriter,
    content: fn(u64) -> Page,
) -> (u128, Vec<Batch>) {
    let frames: Vec<Box<Page>> = (0..PAGES).map(|page| Box::new(content(page))).collect();
    let mut batches = Vec::new();
    let start = Instant::now();
    for (page, frame) in frames.into_iter().enumerate() {
        if writer.is_full() {
            batches.extend(writer.finish());
        }
        drop(encoder.encode(PageIndex(page as u64), frame, writer));
    }
    batches.extend(writer.finish());
    (start.elapsed().as_nanos(), batches)
}
