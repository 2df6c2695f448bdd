//! R2: epochs are committed whole or not at all.

use std::sync::atomic::Ordering;

use super::*;

#[test]
fn initial_pages_go_to_memory_at_once_and_epochs_only_when_whole() {
    let mut bench = Bench::syncing();
    assert_eq!(bench.hear(Message::SyncPages(batch(100, 9))), []);
    assert_eq!(bench.fill(), 9);
    for message in epoch_messages(1, 1) {
        bench.hear(message);
        assert_eq!((bench.fill(), bench.core.committed_epoch()), (9, None));
    }
    bench.give(Input::Tick);
    assert_eq!(bench.fill(), 1);
    assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
    assert_eq!(bench.core.committed_state(), &STATE);
    assert_eq!(bench.core.phase(), BackupPhase::Standby);
    bench.receive(2, 2);
    assert_eq!(bench.fill(), 2);
}

#[test]
fn an_epoch_acked_is_committed_even_if_the_link_closes_next() {
    let mut bench = Bench::standby();
    for message in epoch_messages(2, 2) {
        bench.hear(message);
    }
    let effects = bench.give(Input::LinkClosed);
    assert_eq!(
        effects,
        [Effect::Committed(EpochId(2)), Effect::CloseLink, claim()]
    );
}

#[test]
fn an_epoch_1_acked_is_committed_even_if_the_link_closes_next() {
    let mut bench = Bench::syncing();
    for message in epoch_messages(1, 1) {
        bench.hear(message);
    }
    let effects = bench.give(Input::LinkClosed);
    assert_eq!(effects[0], Effect::Committed(EpochId(1)));
    assert_eq!(effects.last(), Some(&claim()));
}

#[test]
fn epochs_out_of_order_or_corrupt_are_discarded_whole_and_cut_the_link() {
    let corrupt = |mutate: fn(&mut Vec<Message>)| {
        let mut messages = epoch_messages(2, 2);
        mutate(&mut messages);
        messages
    };
    let cases = [
        corrupt(|messages| drop(messages.remove(0))),
        corrupt(|messages| drop(messages.remove(1))),
        corrupt(|messages| drop(messages.remove(2))),
        corrupt(|messages| messages.swap(1, 2)),
        corrupt(|messages| {
            messages[0] = Message::EpochPages {
                epoch: EpochId(2),
                batch: Bytes::from_static(b"junk"),
            };
        }),
        epoch_messages(1, 1),
        epoch_messages(3, 3),
        vec![Message::SyncPages(batch(100, 9))],
    ];
    for messages in cases {
        let mut bench = Bench::standby();
        let effects: Vec<_> = messages
            .iter()
            .flat_map(|message| bench.hear(message.clone()))
            .collect();
        assert!(
            effects.contains(&Effect::CloseLink),
            "{messages:?}: {effects:?}"
        );
        assert!(
            !effects
                .iter()
                .any(|e| matches!(e, Effect::Send(Message::Ack { .. })))
        );
        bench.give(Input::Tick);
        assert_eq!(bench.fill(), 1, "{messages:?}");
        assert_eq!(bench.core.committed_epoch(), Some(EpochId(1)));
        assert_eq!(bench.core.phase(), BackupPhase::Standby);
    }
}

#[test]
fn memory_that_cannot_be_committed_makes_the_standby_unusable() {
    let mut bench = Bench::standby();
    for message in epoch_messages(2, 2) {
        bench.hear(message);
    }
    bench.memory.broken.store(true, Ordering::Relaxed);
    let effects = bench.give(Input::LinkClosed);
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Discarded { epoch: EpochId(2), .. },
                Effect::Send(Message::Bye(Bye::Unable(_))),
                Effect::CloseLink,
                Effect::Reset { reason }
            ] if reason.contains("unusable")
        ),
        "{effects:?}"
    );
    assert_eq!(bench.pass(1000 * MS, false, false), [], "never a claim");
}

#[test]
fn memory_that_cannot_be_written_is_not_the_primarys_fault() {
    let mut bench = Bench::syncing();
    bench.memory.broken.store(true, Ordering::Relaxed);
    let effects = bench.hear(Message::SyncPages(batch(100, 9)));
    assert!(
        matches!(
            &effects[..],
            [
                Effect::Send(Message::Bye(Bye::Unable(_))),
                Effect::CloseLink,
                Effect::Reset { .. }
            ]
        ),
        "{effects:?}"
    );
}

#[test]
fn a_huge_epoch_is_committed_in_slices_and_signs_of_life_go_on() {
    let mut bench = Bench::new();
    let pages = COMMIT_PAGES_MAX as u64 * 2 + 1;
    bench.memory = TestMemory::new(pages);
    bench.core = BackupCore::new(
        Policy::default(),
        BackupIdentity {
            layout: bench.memory.layout().clone(),
            ..bench.core.identity.clone()
        },
        Generation(2),
        bench.now,
    );
    bench.introduce(GENERATION);
    bench.prove();
    let epoch = EpochId(1);
    let mut messages = epoch_with(1, pages, 7, EpochDisks::default());
    let end = messages.pop().expect("an end");
    for message in messages {
        assert_eq!(bench.hear(message), []);
    }
    assert_eq!(bench.hear(end), [ack(1, 0)]);
    for _ in 0..2 {
        bench.now += 30 * MS;
        assert!(bench.core.commit_is_due());
        assert_eq!(bench.give(Input::Tick), [Effect::Send(Message::Heartbeat)]);
    }
    assert_eq!(bench.give(Input::Tick), [Effect::Committed(epoch)]);
    assert!(bench.memory.content().iter().all(|page| page[9] == 7));
}
