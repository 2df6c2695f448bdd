//! Held writes laid over what was read, against a plain array.

use proptest::prelude::*;

use crate::core::disk::{DiskWrite, What};
use crate::disk::primary::overlay::Held;
use crate::ids::EpochId;

const SECTORS: u64 = 40;

#[derive(Debug, Clone)]
enum Step {
    Write(u64, u64, Option<u8>),
    Seal,
    Written(u64),
    Unseal,
}

fn step() -> impl Strategy<Value = Step> {
    let write = (0..SECTORS, 1..12u64, proptest::option::of(any::<u8>()));
    prop_oneof![
        6 => write.prop_map(|(at, length, fill)| Step::Write(at, length.min(SECTORS - at), fill)),
        2 => Just(Step::Seal),
        1 => (0..4u64).prop_map(Step::Written),
        1 => Just(Step::Unseal),
    ]
}

proptest! {
    #[test]
    fn what_is_read_is_what_was_written_last(steps in prop::collection::vec(step(), 1..80)) {
        let mut held = Held::new(1);
        held.hold();
        let bytes = (SECTORS * 512) as usize;
        let (mut image, mut model) = (vec![0u8; bytes], vec![0u8; bytes]);
        let (mut epoch, mut written) = (0, 0);
        for step in steps {
            match step {
                Step::Write(at, length, fill) => {
                    let (offset, length) = (at * 512, length * 512);
                    let range = offset as usize..(offset + length) as usize;
                    model[range].fill(fill.unwrap_or(0));
                    let what = match fill {
                        Some(fill) => What::Data(vec![fill; length as usize].into()),
                        None => What::Zero { bytes: length },
                    };
                    held.push(DiskWrite { disk: 0, offset, what });
                }
                Step::Seal => {
                    epoch += 1;
                    held.seal(EpochId(epoch));
                }
                Step::Written(more) => {
                    written = (written + more).min(epoch);
                    for write in held.due(EpochId(written)).writes {
                        let range = write.offset as usize..(write.offset + write.bytes()) as usize;
                        match write.what {
                            What::Data(data) => image[range].copy_from_slice(&data),
                            What::Zero { .. } | What::Discard { .. } => image[range].fill(0),
                            What::Check { .. } => {}
                        }
                    }
                    held.written(EpochId(written));
                    held.safe();
                }
                Step::Unseal if epoch > written => {
                    held.unseal(EpochId(epoch));
                    epoch -= 1;
                }
                Step::Unseal => {}
            }
            for (from, to) in [(0, SECTORS), (3, 7), (SECTORS - 1, SECTORS)] {
                let (from, to) = ((from * 512) as usize, (to * 512) as usize);
                let mut read = image[from..to].to_vec();
                held.patch(0, from as u64, (to - from) as u64).lay_over(from as u64, &mut read);
                prop_assert!(read == model[from..to], "sectors {}..{}", from / 512, to / 512);
            }
        }
        held.seal_all();
        held.written(EpochId(epoch));
        held.safe();
        prop_assert_eq!(held.bytes(), 0);
    }
}
