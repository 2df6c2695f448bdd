//! The gate against a model.

use bytes::Bytes;
use proptest::prelude::*;

use super::{DEADLINE, console, far, gate_with};
use crate::ids::EpochId;
use crate::output::GateLimits;

/// What a caller does to a gate.
#[derive(Debug, Clone)]
enum Act {
    Send(u8),
    Console(u8),
    Seal,
    Release(u64),
    Open,
    Hold,
}

fn acts() -> impl Strategy<Value = Vec<Act>> {
    let act = prop_oneof![
        4 => any::<u8>().prop_map(Act::Send),
        2 => any::<u8>().prop_map(Act::Console),
        3 => Just(Act::Seal),
        3 => (0..4_u64).prop_map(Act::Release),
        1 => Just(Act::Open),
        1 => Just(Act::Hold),
    ];
    proptest::collection::vec(act, 0..60)
}

proptest! {
    /// Against a model: a list of (epoch or none, byte) that lets go of a prefix.
    #[test]
    fn the_gate_is_a_queue_that_opens_at_released_epochs(acts in acts()) {
        let (gate, port, wire) = gate_with(GateLimits::default());
        let (tty, screen) = console(&gate);
        let mut epoch = 0;
        let mut holding = false;
        let mut waiting: Vec<(Option<u64>, bool, u8)> = Vec::new();
        let (mut frames, mut text): (Vec<Vec<u8>>, Vec<u8>) = Default::default();
        for act in acts {
            let mut gone = Vec::new();
            match act {
                Act::Send(byte) => {
                    port.send(Bytes::copy_from_slice(&[byte])).unwrap();
                    waiting.push((None, true, byte));
                }
                Act::Console(byte) => {
                    tty.write(&[byte]).unwrap();
                    waiting.push((None, false, byte));
                }
                Act::Seal if holding => {
                    epoch += 1;
                    gate.seal(EpochId(epoch));
                    waiting.iter_mut().for_each(|w| w.0 = w.0.or(Some(epoch)));
                }
                Act::Seal => {}
                Act::Release(back) => {
                    let through = epoch.saturating_sub(back);
                    gate.release(EpochId(through), far());
                    gone = waiting
                        .extract_if(.., |w| w.0.is_some_and(|e| e <= through))
                        .collect();
                }
                Act::Open => {
                    gate.open();
                    holding = false;
                }
                Act::Hold => {
                    gate.hold();
                    holding = true;
                }
            }
            if !holding {
                gone.append(&mut waiting);
            }
            for (_, is_frame, byte) in gone {
                if is_frame { frames.push(vec![byte]) } else { text.push(byte) }
            }
            prop_assert_eq!(&wire.contents(), &frames);
            prop_assert!(gate.flush_consoles(DEADLINE));
            prop_assert_eq!(&screen.contents(), &text);
        }
    }
}
