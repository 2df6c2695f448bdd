//! `codec`: nanoseconds per page to encode, decode and write pages of several kinds, over real guest
//! memory, beside copying the same number of pages in the same rounds.

use std::time::Instant;

use anyhow::Result;
use clap::Args;
use rand::rngs::SmallRng;
use rand::{Rng, RngCore, SeedableRng};
use understudy_replication::core::codec::{
    BATCH_BYTES_DEFAULT, Batch, BatchWriter, CodecError, Encoder, PageSink, decode as decode_batch,
};
use understudy_replication::ids::Page;
use understudy_replication::ports::PageMemory;
use understudy_replication::{PAGE_BYTES, PageIndex};
use understudy_vmm::memory::{Backing, Memory};

use crate::table::{Progress, Table, number, text};

/// First page of guest memory that is used.
const FIRST: u64 = 1024;
const WORDS: usize = PAGE_BYTES / 8;

#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// Pages of a round. Frames, cache and guest memory together should not fit into the processor's
    /// caches, as they do not in earnest.
    #[arg(long, value_name = "N", default_value_t = 2000)]
    pages: usize,
    /// Rounds; the median of all is given.
    #[arg(long, value_name = "N", default_value_t = 200)]
    rounds: usize,
}

/// What happens to pages between two epochs.
#[derive(Debug, Clone, Copy)]
enum Kind {
    Zero,
    Unchanged,
    OneWord,
    TenthOfWords,
    Text,
    Syllables,
    Noise,
}

const KINDS: [(Kind, &str); 7] = [
    (Kind::Zero, "zero"),
    (Kind::Unchanged, "unchanged"),
    (Kind::OneWord, "one word changed"),
    (Kind::TenthOfWords, "10 % of words changed"),
    (Kind::Text, "new text"),
    (Kind::Syllables, "random syllables"),
    (Kind::Noise, "new noise"),
];

/// Text that people wrote.
const TEXT: &str = include_str!("../../docs/SAFETY.md");
/// They compress as much as text does, but each match is short and comes as a surprise: the worst for lz4.
const SYLLABLES: [&str; 16] = [
    "ka", "lo", "min", "ter", "us", "on", "ra", "del", "phi", "so", "qui", "an", "ber", "to", "vi",
    " ",
];

impl Kind {
    fn change(self, page: &mut Page, random: &mut SmallRng) {
        let mut word = |number: usize, random: &mut SmallRng| {
            page[number * 8..][..8].copy_from_slice(&random.next_u64().to_le_bytes());
        };
        match self {
            Self::Zero => page.fill(0),
            Self::Unchanged => {}
            Self::OneWord => word(random.random_range(0..WORDS), random),
            Self::TenthOfWords => {
                (0..WORDS / 10).for_each(|_| word(random.random_range(0..WORDS), random));
            }
            Self::Text => {
                let from = random.random_range(0..TEXT.len() - PAGE_BYTES);
                page.copy_from_slice(&TEXT.as_bytes()[from..][..PAGE_BYTES]);
            }
            Self::Syllables => {
                let mut at = 0;
                while at < PAGE_BYTES {
                    let syllable = SYLLABLES[random.random_range(0..SYLLABLES.len())].as_bytes();
                    let length = syllable.len().min(PAGE_BYTES - at);
                    page[at..at + length].copy_from_slice(&syllable[..length]);
                    at += length;
                }
            }
            Self::Noise => random.fill_bytes(page),
        }
    }
}

/// Frames that are used again in the same order.
struct Frames {
    frames: Vec<Box<Page>>,
    pages: Vec<PageIndex>,
}

impl PageSink for Frames {
    fn frame(&mut self, page: PageIndex) -> Result<&mut Page, CodecError> {
        self.pages.push(page);
        let number = self.pages.len() - 1;
        match self.frames.get_mut(number) {
            Some(frame) => Ok(frame),
            None => Err(CodecError::Duplicate { page }),
        }
    }
}

fn new_frames(count: usize) -> Vec<Box<Page>> {
    (0..count).map(|_| Box::new([1; PAGE_BYTES])).collect()
}

/// Times of all rounds of one step, per page.
#[derive(Default)]
struct Times(Vec<f64>);

impl Times {
    fn time<T>(&mut self, pages: usize, work: impl FnOnce() -> T) -> T {
        let began = Instant::now();
        let result = work();
        self.0
            .push(began.elapsed().as_nanos() as f64 / pages as f64);
        result
    }

    fn median(&mut self) -> f64 {
        self.0.sort_by(f64::total_cmp);
        self.0.get(self.0.len() / 2).copied().unwrap_or(0.0)
    }
}

pub(crate) fn run(arguments: &Arguments) -> Result<Table> {
    let progress = Progress::start()?;
    let mut table = Table::default();
    for (kind, name) in KINDS {
        progress.say(name);
        let mut bench = Bench::new(arguments.pages.clamp(1, 50_000))?;
        // The first round fills the encoder's cache.
        bench.round(kind)?;
        bench.forget_times();
        for _ in 0..arguments.rounds.max(1) {
            bench.round(kind)?;
        }
        let [copy, capture, encode, decode, write] = bench.times.each_mut().map(Times::median);
        let gb_per_s = |ns: f64| number(PAGE_BYTES as f64 / ns.max(f64::MIN_POSITIVE), 2);
        table.push(vec![
            ("pages", text(name)),
            ("bytes_a_page", number(bench.bytes_a_page, 0)),
            ("copy_ns", number(copy, 0)),
            ("capture_ns", number(capture, 0)),
            ("encode_ns", number(encode, 0)),
            ("encode_gb_per_s", gb_per_s(encode)),
            ("encode_by_copy", number(encode / copy, 1)),
            ("decode_ns", number(decode, 0)),
            ("decode_gb_per_s", gb_per_s(decode)),
            ("decode_by_copy", number(decode / copy, 1)),
            ("commit_ns", number(write, 0)),
        ]);
    }
    Ok(table)
}

struct Bench {
    random: SmallRng,
    /// What the guest has.
    guest: Memory,
    /// What the backup has.
    backup: Memory,
    masters: Vec<Box<Page>>,
    copies: Vec<Box<Page>>,
    spare: Vec<Box<Page>>,
    encoder: Encoder,
    decoded: Frames,
    times: [Times; 5],
    bytes_a_page: f64,
}

impl Bench {
    fn new(pages: usize) -> Result<Self> {
        let memory_mib = (pages as u64 + FIRST).div_ceil(256).max(64);
        Ok(Self {
            random: SmallRng::seed_from_u64(1),
            guest: Memory::allocate(memory_mib, Backing::Anonymous)?,
            backup: Memory::allocate(memory_mib, Backing::Anonymous)?,
            masters: new_frames(pages),
            copies: new_frames(pages),
            spare: new_frames(2 * pages),
            encoder: Encoder::new(pages),
            decoded: Frames {
                frames: new_frames(pages),
                pages: Vec::with_capacity(pages),
            },
            times: Default::default(),
            bytes_a_page: 0.0,
        })
    }

    fn forget_times(&mut self) {
        self.times = Default::default();
    }

    fn round(&mut self, kind: Kind) -> Result<()> {
        let count = self.masters.len();
        for (page, master) in (FIRST..).map(PageIndex).zip(&mut self.masters) {
            kind.change(master, &mut self.random);
            self.guest.pages().write_page(page, master)?;
        }
        let [copy, capture, encode, decode, write] = &mut self.times;
        copy.time(count, || {
            for (to, from) in self.copies.iter_mut().zip(&self.masters) {
                to.copy_from_slice(&**from);
            }
        });
        let captured = capture.time(count, || -> Result<_> {
            let mut captured = Vec::with_capacity(count);
            for page in (FIRST..FIRST + count as u64).map(PageIndex) {
                let mut frame = self
                    .spare
                    .pop()
                    .unwrap_or_else(|| Box::new([0; PAGE_BYTES]));
                self.guest.pages().read_page(page, &mut frame)?;
                captured.push((page, frame));
            }
            Ok(captured)
        })?;
        let batches = encode.time(count, || {
            let mut batches: Vec<Batch> = Vec::new();
            let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
            for (page, frame) in captured {
                self.spare
                    .extend(self.encoder.encode(page, frame, &mut writer).spare);
                if writer.is_full() {
                    batches.extend(writer.finish());
                }
            }
            batches.extend(writer.finish());
            batches
        });
        self.decoded.pages.clear();
        decode.time(count, || {
            batches.iter().try_for_each(|batch| {
                decode_batch(&batch.body, &**self.backup.pages(), &mut self.decoded).map(drop)
            })
        })?;
        write.time(count, || {
            self.decoded
                .pages
                .iter()
                .zip(&self.decoded.frames)
                .try_for_each(|(page, frame)| self.backup.pages().write_page(*page, frame))
        })?;
        let bytes: usize = batches.iter().map(|batch| batch.body.len()).sum();
        self.bytes_a_page = bytes as f64 / count as f64;
        Ok(())
    }
}
