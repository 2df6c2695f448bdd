//! What a backup tells people and its runtime about itself is true.

use std::collections::BTreeSet;

use super::*;
use crate::output::NetworkFrame;

#[test]
fn each_phase_has_a_name_of_its_own() {
    use BackupPhase::*;
    let phases = [Listening, Syncing, Standby, Claiming, Promoted];
    let names: BTreeSet<_> = phases.map(BackupPhase::name).into();
    assert_eq!(names.len(), phases.len());
    assert!(names.contains("standby"));
}

#[test]
fn whose_backup_it_is_is_known_from_the_introduction_on() {
    let bench = Bench::new();
    assert_eq!((bench.core.session(), bench.core.primary_node()), (0, None));
    let mut bench = Bench::syncing();
    let of_a = (SESSION, Some("a"));
    assert_eq!((bench.core.session(), bench.core.primary_node()), of_a);
    bench.give(Input::LinkClosed);
    assert_eq!(bench.core.primary_node(), None);
}

#[test]
fn output_that_the_primary_has_not_reported_as_out_is_to_be_repeated() {
    let mut bench = Bench::syncing();
    let frame = NetworkFrame {
        device: 0,
        bytes: Bytes::from_static(b"an answer"),
    };
    let output = SealedOutput {
        frames: vec![frame.clone()],
        ..SealedOutput::default()
    };
    let mut messages = Vec::new();
    let assembler = EpochAssembler::new(EpochId(1), BatchBytes::default(), &mut messages);
    let Ok(_) = assembler.end(EpochDisks::default(), STATE, output);
    for message in messages {
        bench.hear(message);
    }
    assert_eq!(bench.core.output_to_repeat().frames, [], "not committed");
    bench.give(Input::Tick);
    assert_eq!(bench.core.output_to_repeat().frames, [frame]);
    // The guest is handed over, and the primary's network has taken the frame.
    bench.hear(Message::TakeOver {
        why: "it is to stop".into(),
        machine_broke: false,
        left_through: EpochId(1),
    });
    assert_eq!(bench.core.output_to_repeat().frames, []);
}

#[test]
fn it_may_have_been_granted_the_guest_from_its_question_on() {
    let mut bench = Bench::standby();
    assert!(!bench.core.has_asked());
    assert_eq!(bench.give(Input::PromotionWanted), [claim()]);
    assert!(bench.core.has_asked());
    // The arbiter may be asked again, but nothing is known to have been granted.
    assert_eq!(bench.give(unavailable()), [Effect::CloseLink]);
    assert!(bench.core.has_asked());
}
