//! Other ways of checkpointing, which are there to be compared with: they protect as well as our own.

use std::sync::Arc;
use std::time::Duration;

use understudy_replication::core::policy::{Checkpointing, Policy};
use understudy_replication::ports::Machine;
use understudy_replication::runtime::Ended;
use understudy_transport::Endpoint;

use crate::fake::{Fake, steps};
use crate::hang::{Hang, Heals};
use crate::relay::relay;
use crate::{patient, primary, promoted, standby, wait_for};

/// A guest that makes no step at so many looks, 10 ms apart, waits. One that only waits for a processor makes some.
const STILL: u32 = 100;
/// Far longer than a test holds the link up.
const SILENCE_MAX: Duration = Duration::from_secs(120);

/// Protects a guest, holds the link up, and sees whether the guest stands still until the link goes on.
fn stands_still_while_the_link_does(checkpointing: Checkpointing) -> bool {
    let directory = tempfile::tempdir().unwrap();
    let directory = directory.path();
    let policy = checkpointing.policy(Policy {
        // Enough steps for more pages than a socket and a relay take without being read.
        epoch_interval: Duration::from_millis(100),
        heartbeat_timeout: SILENCE_MAX,
        ..patient()
    });
    let hang = Arc::<Hang>::default();
    let _heals = Heals(Arc::clone(&hang));
    let (slow, held) = (directory.join("slow"), Arc::clone(&hang));
    relay(&slow, &directory.join("channel"), move |_| held.pass());
    let standby = standby(directory, Fake::new())
        .policy(policy.clone())
        .start()
        .unwrap();
    let machine = Fake::new().with_pace(Duration::from_micros(20));
    let memory = machine.memory();
    let primary = primary(directory, machine)
        .policy(policy)
        .backup(Endpoint::Unix(slow))
        .protect()
        .unwrap();
    let handle = primary.handle();
    wait_for(
        "protected",
        || handle.status(),
        |status| status.protected && status.epochs >= 3,
    );
    let status = handle.status();
    let sent = &status.encoded;
    assert!(sent.raw > 0, "{sent:?}");
    assert_eq!(
        [sent.zero, sent.unchanged, sent.delta, sent.compressed],
        [0; 4]
    );
    assert_eq!(status.open_pages, 0);

    hang.set(true);
    // A guest that waits for the link makes no step, however long one looks; one that does not goes on.
    let (mut before, mut same) = (steps(&*memory), 0);
    let first = before;
    while same < STILL && before < first + 40_000 {
        std::thread::sleep(Duration::from_millis(10));
        let now = steps(&*memory);
        same = if now == before { same + 1 } else { 0 };
        before = now;
    }
    hang.set(false);
    let epochs = handle.status().epochs;
    wait_for(
        "going on",
        || handle.status(),
        |status| status.epochs > epochs + 1,
    );
    assert!(standby.handle().promote());
    assert!(matches!(primary.wait().unwrap(), Ended::Fenced { .. }));
    let mut promoted = promoted(standby);
    promoted.machine.stop();
    promoted.machine.assert_consistent();
    same >= STILL
}

#[test]
fn remus_sends_pages_as_they_are_while_the_guest_runs() {
    assert!(!stands_still_while_the_link_does(Checkpointing::Remus));
}

#[test]
fn stop_and_send_sends_them_before_it_runs() {
    assert!(stands_still_while_the_link_does(Checkpointing::StopAndSend));
}
