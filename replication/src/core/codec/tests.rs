//! Round trips over a model of the backup, exact sizes of each encoding, and corrupt batches.

use bytes::BytesMut;
use proptest::prelude::*;

use super::*;
use crate::core::testing::TestMemory;
use crate::ids::{PAGE_BYTES, Page};
use crate::ports::PageMemory;

const PAGES: u64 = 8;

/// Collects what is decoded.
#[derive(Default)]
struct Sink(Vec<(PageIndex, Box<Page>)>);

impl PageSink for Sink {
    fn frame(&mut self, page: PageIndex) -> Result<&mut Page, CodecError> {
        if self.0.iter().any(|(seen, _)| *seen == page) {
            return Err(CodecError::Duplicate { page });
        }
        self.0.push((page, Box::new([0xee; PAGE_BYTES])));
        Ok(&mut self.0.last_mut().expect("pushed").1)
    }
}

fn noise(seed: u64) -> Box<Page> {
    let mut state = seed | 1;
    let mut page = Box::new([0; PAGE_BYTES]);
    for byte in page.iter_mut() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        *byte = (state >> 24) as u8;
    }
    page
}

fn try_encode(encoder: &mut Encoder, pages: &[(u64, Box<Page>)]) -> Option<Batch> {
    let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
    for (page, frame) in pages {
        let _ = encoder.encode(PageIndex(*page), frame.clone(), &mut writer);
    }
    writer.finish()
}

fn encode(encoder: &mut Encoder, pages: &[(u64, Box<Page>)]) -> Batch {
    try_encode(encoder, pages).expect("some page")
}

/// Decodes and writes to memory, as a committed epoch would.
fn commit(batch: &Batch, memory: &TestMemory) {
    let mut sink = Sink::default();
    let pages = decode(&batch.body, memory, &mut sink).expect("valid");
    assert_eq!(pages, batch.pages);
    for (page, frame) in &sink.0 {
        memory.write_page(*page, frame).expect("writes");
    }
}

#[test]
fn every_encoding_is_used_for_what_it_is_least_for() {
    let memory = TestMemory::new(PAGES);
    let mut encoder = Encoder::new(16);
    let mut text = Box::new([b'a'; PAGE_BYTES]);
    text[7] = b'b';
    let first = [
        (100, Box::new([0; PAGE_BYTES])),
        (101, text.clone()),
        (102, noise(1)),
    ];
    commit(&encode(&mut encoder, &first), &memory);
    let stats = encoder.stats();
    assert_eq!(
        (stats.zero_pages, stats.lz4_pages, stats.raw_pages),
        (1, 1, 1)
    );

    let mut word = noise(1);
    word[4000] ^= 1;
    let batch = encode(&mut encoder, &[(101, text.clone()), (102, word.clone())]);
    // Unchanged: nothing. One word: record header, checksum, mask, one bitmap, one word.
    assert_eq!(batch.body.len(), 4 + (8 + 4 + 1 + 8 + 8));
    commit(&batch, &memory);
    assert_eq!(encoder.stats().unchanged_pages, 1);
    assert_eq!(encoder.stats().delta_pages, 1);
    assert_eq!(memory.content()[1], *text);
    assert_eq!(memory.content()[2], *word);

    // All words changed, by noise: a delta would be longer than the page.
    let batch = encode(&mut encoder, &[(102, noise(2))]);
    assert_eq!(batch.body.len(), 4 + 8 + PAGE_BYTES);
    commit(&batch, &memory);
    assert_eq!(memory.content()[2], *noise(2));
    assert_eq!(encoder.stats().pages(), 6);

    // Half of its words: less than the page, and noise again.
    let mut half = noise(2);
    half[..PAGE_BYTES / 2].copy_from_slice(&noise(5)[..PAGE_BYTES / 2]);
    let batch = encode(&mut encoder, &[(102, half)]);
    assert_eq!(batch.body.len(), 4 + (8 + 4 + 1 + 4 * 8 + PAGE_BYTES / 2));
    commit(&batch, &memory);
    // All words changed, but the page says little.
    let mut encoder = Encoder::new(16);
    encode(&mut encoder, &[(101, text)]);
    let before = encoder.stats();
    let [nines, zeroes] = [9, 0].map(|fill| Box::new([fill; PAGE_BYTES]));
    let batch = encode(&mut encoder, &[(101, nines), (103, zeroes)]);
    let stats = encoder.stats();
    assert_eq!(stats.lz4_pages, before.lz4_pages + 1);
    let bytes = stats.encoded_bytes - before.encoded_bytes;
    assert_eq!(bytes, batch.body.len() as u64);
}

#[test]
fn a_delta_is_as_long_as_it_is_said_to_be() {
    let old = noise(1);
    for words in [1, 2, 64, 65, 512] {
        let mut new = old.clone();
        new.iter_mut()
            .step_by(8)
            .take(words)
            .for_each(|it| *it ^= 1);
        let delta = delta::Delta::between(&old, &new);
        let mut written = BytesMut::new();
        delta.write(&old, &new, &mut written);
        assert_eq!(delta.encoded_bytes(), written.len(), "{words}");
    }
}

#[test]
fn says_whether_a_page_has_changed_if_it_remembers_the_page() {
    let mut encoder = Encoder::new(1);
    let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
    let mut changed = |page, content: &Page| {
        let frame = Box::new(*content);
        encoder.encode(PageIndex(page), frame, &mut writer).changed
    };
    let zero = [0; PAGE_BYTES];
    assert!(!changed(100, &noise(1)), "seen for the first time");
    assert!(!changed(100, &noise(1)));
    assert!(changed(100, &noise(2)));
    assert!(changed(100, &zero));
    assert!(!changed(100, &zero));
    assert!(changed(100, &noise(2)));
    // This takes the only place in the cache.
    assert!(!changed(101, &noise(3)));
    assert!(!changed(100, &noise(4)), "not remembered");
}

#[test]
fn golden_bytes_of_a_delta() {
    let mut encoder = Encoder::new(4);
    let mut page = noise(3);
    let _ = encode(&mut encoder, &[(100, page.clone())]);
    page[512 + 8] ^= 0x80;
    let batch = encode(&mut encoder, &[(100, page.clone())]);
    let mut expected = vec![1, 0, 0, 0, 2, 100, 0, 0, 0, 0, 0, 0];
    expected.extend(crc32fast::hash(&page[..]).to_le_bytes());
    expected.push(0b10);
    expected.extend(2u64.to_le_bytes());
    expected.extend(0x80u64.to_le_bytes());
    assert_eq!(batch.body, expected);
}

#[test]
fn spare_frames_are_given_back_and_the_cache_is_bounded() {
    let mut encoder = Encoder::new(2);
    let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
    let mut spares = 0;
    for page in 100..108 {
        spares += usize::from(
            encoder
                .encode(PageIndex(page), noise(page), &mut writer)
                .spare
                .is_some(),
        );
    }
    assert_eq!(spares, 6, "the cache keeps two frames and no more");
}

#[test]
fn forgetting_makes_batches_independent_of_what_was_sent_before() {
    let mut encoder = Encoder::new(16);
    let page = noise(5);
    let lost = encode(&mut encoder, &[(100, page.clone())]);
    // The batch never arrived, but as far as the encoder knows nothing is to be sent again …
    assert_eq!(try_encode(&mut encoder, &[(100, page.clone())]), None);
    // … until it forgets.
    encoder.forget();
    let again = encode(&mut encoder, &[(100, page)]);
    assert_eq!(again, lost);
}

#[test]
fn a_delta_over_another_base_is_refused() {
    let mut encoder = Encoder::new(16);
    let mut page = noise(5);
    commit(
        &encode(&mut encoder, &[(100, page.clone())]),
        &TestMemory::new(PAGES),
    );
    page[0] ^= 1;
    let batch = encode(&mut encoder, &[(100, page)]);
    let diverged = TestMemory::new(PAGES);
    diverged
        .write_page(PageIndex(100), &noise(6))
        .expect("writes");
    let error = decode(&batch.body, &diverged, &mut Sink::default());
    assert!(matches!(error, Err(CodecError::BaseDiffers { .. })));
}

#[test]
fn batches_stay_within_their_bound() {
    let mut encoder = Encoder::new(0);
    let mut writer = BatchWriter::new(20_000);
    let mut batches = Vec::new();
    for page in 0..100 {
        if writer.is_full() {
            batches.extend(writer.finish());
        }
        assert!(
            encoder
                .encode(PageIndex(page), noise(page), &mut writer)
                .spare
                .is_some()
        );
    }
    batches.extend(writer.finish());
    assert!(writer.finish().is_none());
    assert_eq!(batches.iter().map(|batch| batch.pages).sum::<u32>(), 100);
    for batch in &batches {
        assert!(batch.body.len() <= 20_000, "{} bytes", batch.body.len());
    }
    assert_eq!(batches.len(), 25, "four pages of noise fit into each");
}

#[test]
fn noise_is_hardly_ever_tried_to_compress() {
    let mut encoder = Encoder::new(0);
    for page in 0..1000 {
        let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
        let _ = encoder.encode(PageIndex(page), noise(page), &mut writer);
    }
    // Compressible pages are found again after a bounded number of pages.
    for page in 1000..1100 {
        let mut writer = BatchWriter::new(BATCH_BYTES_DEFAULT);
        let _ = encoder.encode(PageIndex(page), Box::new([7; PAGE_BYTES]), &mut writer);
    }
    assert_eq!(
        encoder.stats().raw_pages - 1000 + encoder.stats().lz4_pages,
        100
    );
    // After each that was tried, this many were not: 1, 3, 7, 15, 31, and 63 from then on.
    let found = 2 + 4 + 8 + 16 + 32 + 15 * 64;
    assert_eq!(encoder.stats().lz4_pages, 1100 - found);
}

fn record(page: u64, kind: u8, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 1u32.to_le_bytes().to_vec();
    bytes.extend((page << 8 | u64::from(kind)).to_le_bytes());
    bytes.extend(payload);
    bytes
}

fn decode_over_zeroes(batch: &[u8]) -> Result<u32, CodecError> {
    decode(batch, &TestMemory::new(PAGES), &mut Sink::default())
}

#[test]
fn each_malformation_is_named() {
    let page = PageIndex(100);
    let offset = 4;
    assert_eq!(decode_over_zeroes(&[]), Err(CodecError::Empty { bytes: 0 }));
    assert_eq!(
        decode_over_zeroes(&[0; 4]),
        Err(CodecError::Empty { bytes: 4 })
    );
    assert_eq!(
        decode_over_zeroes(&record(99, KIND_ZERO, &[])),
        Err(CodecError::NotMemory {
            page: PageIndex(99),
            offset
        })
    );
    assert_eq!(
        decode_over_zeroes(&record(100, 5, &[])),
        Err(CodecError::UnknownKind {
            page,
            offset,
            kind: 5
        })
    );
    assert_eq!(
        decode_over_zeroes(&record(100, KIND_ZERO, &[1, 2])),
        Err(CodecError::LeftOver {
            bytes: 2,
            records: 1
        })
    );
    assert_eq!(
        decode_over_zeroes(&record(100, KIND_RAW, &[0; 4095])),
        Err(CodecError::Truncated {
            record: 0,
            offset: 12 + 4095,
            missing: 1
        })
    );
    for (kind, payload) in [
        (KIND_DELTA, &[0, 0, 0, 0, 0][..]),
        (KIND_DELTA, &[0, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0]),
        (
            KIND_DELTA,
            &[
                0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
            ],
        ),
        (KIND_LZ4, &[0, 0]),
        (KIND_LZ4, &[2, 0, 0x10, 7]),
        (KIND_LZ4, &[3, 0, 1, 1, 1]),
    ] {
        let error = decode_over_zeroes(&record(100, kind, payload));
        assert!(
            matches!(error, Err(CodecError::Malformed { .. })),
            "{kind} {payload:?}: {error:?}"
        );
    }
    let mut twice = record(100, KIND_ZERO, &[]);
    twice.extend_from_within(4..);
    twice[0] = 2;
    assert_eq!(
        decode_over_zeroes(&twice),
        Err(CodecError::Duplicate { page })
    );
    // A count that no batch could hold is only found out at the batch's end.
    let mut many = record(100, KIND_ZERO, &[]);
    many[..4].fill(0xff);
    assert!(matches!(
        decode_over_zeroes(&many),
        Err(CodecError::Truncated { .. })
    ));
}

#[test]
fn how_much_is_missing_is_named() {
    // A checksum, a mask, and then too little of a bitmap or of a word.
    let delta = [0, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 7, 7, 7];
    for (length, missing) in [(3, 1), (4, 1), (8, 5), (16, 5)] {
        let truncated = decode_over_zeroes(&record(100, KIND_DELTA, &delta[..length]));
        assert_eq!(
            truncated,
            Err(CodecError::Truncated {
                record: 0,
                offset: 12 + length,
                missing
            })
        );
    }
    assert_eq!(
        decode_over_zeroes(&record(100, KIND_LZ4, &[5, 0, 7, 7])),
        Err(CodecError::Truncated {
            record: 0,
            offset: 16,
            missing: 3
        })
    );
}

/// What a guest does to a page.
#[derive(Debug, Clone)]
enum Write {
    Zero,
    Fill(u8),
    Noise(u64),
    Words(Vec<(usize, u64)>),
    Nothing,
}

fn writes() -> impl Strategy<Value = Write> {
    prop_oneof![
        Just(Write::Zero),
        any::<u8>().prop_map(Write::Fill),
        any::<u64>().prop_map(Write::Noise),
        proptest::collection::vec((0usize..512, any::<u64>()), 1..200).prop_map(Write::Words),
        Just(Write::Nothing),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Over many epochs of arbitrary writes the backup's memory is the primary's.
    #[test]
    fn backup_memory_follows(
        epochs in proptest::collection::vec(proptest::collection::btree_map(0..PAGES, writes(), 1..6), 1..12),
        cache in 0usize..10,
        forget_at in 0usize..12,
    ) {
        let mut guest: Vec<Box<Page>> = vec![Box::new([0; PAGE_BYTES]); PAGES as usize];
        let backup = TestMemory::new(PAGES);
        let mut encoder = Encoder::new(cache);
        for (number, epoch) in epochs.iter().enumerate() {
            if number == forget_at {
                encoder.forget();
            }
            let mut dirty = Vec::new();
            for (page, write) in epoch {
                let target = &mut guest[*page as usize];
                match write {
                    Write::Zero => target.fill(0),
                    Write::Fill(byte) => target.fill(*byte),
                    Write::Noise(seed) => *target = noise(*seed),
                    Write::Words(words) => for (word, value) in words {
                        target[word * 8..word * 8 + 8].copy_from_slice(&value.to_le_bytes());
                    },
                    Write::Nothing => {}
                }
                dirty.push((100 + page, target.clone()));
            }
            if let Some(batch) = try_encode(&mut encoder, &dirty) {
                commit(&batch, &backup);
            }
            for (page, expected) in guest.iter().enumerate() {
                prop_assert!(backup.content()[page] == **expected, "page {}", page);
            }
        }
    }

    /// Whatever is cut off or flipped, decoding ends with an error or a page count, never a panic.
    #[test]
    fn damaged_batches_never_panic(
        damage in proptest::collection::vec((any::<prop::sample::Index>(), 1u8..), 0..4),
        cut in any::<prop::sample::Index>(),
        write in writes(),
    ) {
        let mut encoder = Encoder::new(8);
        let memory = TestMemory::new(PAGES);
        let base: Vec<_> = (100..104).map(|page| (page, noise(page))).collect();
        commit(&encode(&mut encoder, &base), &memory);
        let mut changed = base.clone();
        for (page, frame) in &mut changed {
            match &write {
                Write::Words(words) => for (word, value) in words {
                    frame[word * 8] ^= *value as u8;
                },
                Write::Fill(byte) => frame.fill(*byte),
                _ => frame[*page as usize] ^= 1,
            }
        }
        let whole = encode(&mut encoder, &changed).body;
        let mut bytes = whole.to_vec();
        bytes.truncate(cut.index(bytes.len()) + 1);
        let truncated = bytes.len() < whole.len();
        let undamaged = damage.is_empty();
        for (index, flip) in damage {
            let at = index.index(bytes.len());
            bytes[at] ^= flip;
        }
        let decoded = decode(&bytes, &memory, &mut Sink::default());
        if undamaged {
            prop_assert_eq!(decoded.is_err(), truncated);
        }
    }

    /// Arbitrary bytes behind a plausible beginning.
    #[test]
    fn arbitrary_batches_never_panic(kind in 0u8..6, payload in proptest::collection::vec(any::<u8>(), 0..300)) {
        let _: Result<u32, CodecError> = decode_over_zeroes(&record(101, kind, &payload));
    }
}
