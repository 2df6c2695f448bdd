//! What is assembled can be staged, in the order of the protocol.

use proptest::prelude::*;

use super::*;
use crate::core::disk::What;
use crate::core::epoch::staging::{Committed, Staging};
use crate::core::testing::TestMemory;
use crate::ids::PAGE_BYTES;
use crate::output::NetworkFrame;
use crate::ports::PageMemory;

const STATE: Bytes = Bytes::from_static(b"state");
const FRAME: Bytes = Bytes::from_static(b"an answer");
const DISK_BYTES: u64 = 1 << 20;
const SMALL: BatchBytes = BatchBytes {
    pages: 9000,
    disk: 1200,
};

/// A page that neither the zero nor the compressed record is made for.
fn noise(seed: u64) -> Box<Page> {
    let mut frame = Box::new([0; PAGE_BYTES]);
    let mut value = seed | 1;
    for word in frame.chunks_exact_mut(8) {
        value = value.wrapping_mul(0x5851_f42d_4c95_7f2d).rotate_left(17) ^ 1;
        word.copy_from_slice(&value.to_le_bytes());
    }
    frame
}

fn write(sector: u64, fill: u8) -> DiskWrite {
    DiskWrite {
        disk: 0,
        offset: sector * 512,
        what: What::Data(vec![fill; 512].into()),
    }
}

fn output() -> SealedOutput {
    let (device, bytes) = (0, FRAME);
    SealedOutput {
        frames: vec![NetworkFrame { device, bytes }],
        ..SealedOutput::default()
    }
}

fn assemble(epoch: EpochId, pages: &[u64], disks: EpochDisks<'_>) -> (Vec<Message>, Assembled) {
    let mut messages = Vec::new();
    let mut encoder = Encoder::new(0);
    let mut assembler = EpochAssembler::new(epoch, SMALL, &mut messages);
    for page in pages {
        let Ok(_) = assembler.page(&mut encoder, PageIndex(100 + page), noise(*page));
    }
    let Ok(assembled) = assembler.end(disks, STATE, output());
    (messages, assembled)
}

fn stage(staging: &mut Staging, message: Message, memory: &TestMemory) {
    let staged = match message {
        Message::SyncPages(batch) => staging.sync(&batch, memory),
        Message::EpochPages { epoch, batch } => staging.pages(epoch, &batch, memory),
        Message::EpochDisk { epoch, batch } => staging.disk(epoch, batch, &[DISK_BYTES]),
        Message::EpochState { epoch, state } => staging.state(epoch, state),
        Message::EpochOutput { epoch, output } => staging.output(epoch, output),
        Message::EpochEnd { epoch, summary } => staging.end(epoch, summary),
        message => panic!("{} is no part of an epoch", message.name()),
    };
    staged.expect("what was assembled can be staged");
}

#[test]
fn the_messages_come_in_the_order_of_the_protocol() {
    let writes = [write(0, 1), write(2, 2), write(4, 3)];
    let disks = EpochDisks {
        writes: &writes,
        flush: true,
        written_through: EpochId(4),
    };
    let (messages, assembled) = assemble(EpochId(5), &[0, 1, 2], disks);
    let names: Vec<_> = messages.iter().map(Message::name).collect();
    assert_eq!(
        names,
        [
            "EpochPages",
            "EpochPages",
            "EpochDisk",
            "EpochDisk",
            "EpochState",
            "EpochOutput",
            "EpochEnd"
        ]
    );
    let Some(Message::EpochEnd { summary, .. }) = messages.last() else {
        panic!("no end");
    };
    assert_eq!((summary.pages, summary.batches), (3, 2));
    assert_eq!(summary.disk_batches, 2);
    assert_eq!((summary.flush, summary.written_through), (true, EpochId(4)));
    let bytes = |wanted: &str| -> u64 {
        let of_kind = messages.iter().filter(|message| message.name() == wanted);
        of_kind.map(|message| message.encode().2.len() as u64).sum()
    };
    assert_eq!(assembled.disk_bytes, bytes("EpochDisk"));
    let state = (STATE.len() + FRAME.len()) as u64;
    assert_eq!(assembled.machine_bytes, bytes("EpochPages") + state);
}

#[test]
fn pieces_of_the_synchronisation_come_between_batches() {
    let memory = TestMemory::new(4);
    let mut staging = Staging::new(memory.layout());
    let mut messages = Vec::new();
    let mut encoder = Encoder::new(0);
    let mut assembler = SyncAssembler::new(SMALL, &mut messages);
    assert!(assembler.is_between_batches());
    for page in 0..3 {
        let Ok(_) = assembler.page(&mut encoder, PageIndex(100 + page), noise(page));
        assert_eq!(assembler.is_between_batches(), page == 1);
        if page == 1 {
            let Ok(()) = assembler.disk(&[write(7, 7)]);
        }
    }
    let Ok(assembled) = assembler.end();
    assert!(assembled.disk_bytes > 512 && assembled.machine_bytes > 3 * 4096);
    let names: Vec<_> = messages.iter().map(Message::name).collect();
    assert_eq!(names, ["SyncPages", "SyncDisk", "SyncPages"]);
    for message in messages {
        if message.name() == "SyncPages" {
            stage(&mut staging, message, &memory);
        }
    }
    assert_eq!(memory.content()[2], *noise(2));
}

/// A link that takes so many messages.
struct Short(usize);

impl MessageSink for Short {
    type Error = &'static str;

    fn put(&mut self, _: Message) -> Result<(), Self::Error> {
        self.0 = self.0.checked_sub(1).ok_or("full")?;
        Ok(())
    }
}

#[test]
fn the_sinks_error_comes_back_wherever_it_happens() {
    // Two batches of pages, two of disk writes, state, output, end.
    for room in 0..=7 {
        let mut encoder = Encoder::new(0);
        let mut assembler = EpochAssembler::new(EpochId(1), SMALL, Short(room));
        let mut outcome = Ok(());
        for page in 0..3 {
            assert_eq!(assembler.has_begun(), page == 2);
            let page = assembler.page(&mut encoder, PageIndex(100 + page), noise(page));
            outcome = page.map(drop);
            if outcome.is_err() {
                break;
            }
        }
        let writes = [write(0, 1), write(2, 2), write(4, 3)];
        let disks = EpochDisks {
            writes: &writes,
            ..EpochDisks::default()
        };
        let outcome = outcome.and_then(|()| assembler.end(disks, STATE, SealedOutput::default()));
        assert_eq!(outcome.is_ok(), room == 7, "{outcome:?}");
    }
}

proptest! {
    /// The mirror: staging what was assembled commits exactly that.
    #[test]
    fn what_is_assembled_is_what_is_committed(
        pages in proptest::collection::btree_set(0u64..16, 0..16),
        writes in proptest::collection::vec((0u64..64, any::<u8>()), 0..8),
        flush: bool,
    ) {
        let memory = TestMemory::new(16);
        let mut staging = Staging::new(memory.layout());
        let pages: Vec<u64> = pages.into_iter().collect();
        let writes: Vec<_> = writes.iter().map(|(sector, fill)| write(*sector, *fill)).collect();
        let disks = EpochDisks { writes: &writes, flush, ..EpochDisks::default() };
        let (messages, _) = assemble(EpochId(1), &pages, disks);
        for message in messages {
            prop_assert!(!staging.is_whole());
            stage(&mut staging, message, &memory);
        }
        let bytes: usize = staging.take_disk_batches().iter().map(Bytes::len).sum();
        prop_assert_eq!(bytes > 0, !writes.is_empty());
        let committed = staging.commit(usize::MAX, &memory).expect("commits");
        let output = output();
        let (epoch, count) = (EpochId(1), pages.len() as u64);
        prop_assert_eq!(committed, Some(Committed { epoch, state: STATE, output, pages: count }));
        for page in 0..16 {
            let expected = if pages.contains(&page) { *noise(page) } else { [0; PAGE_BYTES] };
            prop_assert_eq!(memory.content()[page as usize], expected);
        }
    }
}
