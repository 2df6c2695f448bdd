//! Thousands of seeded schedules of faults over whole clusters that run exactly the library's core.
//!
//! `UNDERSTUDY_SIM_SEED=n` replays one seed with a trace. `UNDERSTUDY_SIM_FROM` and
//! `UNDERSTUDY_SIM_SEEDS` set where the ordinary run begins and how many seeds it takes.
//! `cargo xtask simulate` sets them for long runs. `UNDERSTUDY_SIM_DIGESTS=file` writes a digest of all decisions of each seed there. Two versions
//! of the core behave alike if their files are the same.
#![forbid(unsafe_code)]
// Modules of a test: what fails to unwrap here fails the test.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used)]

mod sim;

use std::time::Duration;

use sim::faults::Fault;
use sim::hangs::What;
use sim::liar::Story;
use sim::seeds::Seeds;
use sim::world::{policy, settings};
use sim::{Report, Settings, World, ms};

/// As many as fit into a minute of two processors.
const SEEDS: u64 = 8000;

fn from_environment(name: &str) -> Option<u64> {
    let value = std::env::var(name).ok()?;
    Some(value.parse().expect("a number of a seed, or of seeds"))
}

#[test]
fn any_schedule_of_faults_keeps_the_rules() {
    if let Some(seed) = from_environment("UNDERSTUDY_SIM_SEED") {
        let report = World::new(settings(seed, true)).run();
        return println!("{:#?}", report.expect("the rules are kept"));
    }
    let from = from_environment("UNDERSTUDY_SIM_FROM").unwrap_or(0);
    let seeds = from_environment("UNDERSTUDY_SIM_SEEDS").unwrap_or(SEEDS);
    let digests = std::env::var("UNDERSTUDY_SIM_DIGESTS").ok();
    let outcome = Seeds {
        from,
        to: from + seeds,
        digests: digests.is_some(),
    }
    .run();
    let totals = outcome.totals;
    if let Some(path) = digests {
        let lines = outcome.digests.into_iter();
        let lines = lines.map(|(seed, digest)| format!("{seed} {digest:016x}\n"));
        std::fs::write(path, lines.collect::<String>()).unwrap();
    }
    println!("{seeds} seeds from {from}: {totals:#?}");
    if let Some((seed, violation)) = outcome.failures.first() {
        panic!("seed {seed}: {violation}\nreplay: cargo xtask simulate --replay {seed}");
    }
    // The schedules must reach what they are to test.
    for rare in ["starts beside a holder", "starts from nothing"] {
        assert!(totals.contains_key(rare), "{rare}: never");
    }
    for what in [
        "arbiter silent",
        "backups dismissed",
        "calls that hung",
        "broken links",
        "captures failed",
        "commits",
        "crashes of a backup checked",
        "durable epochs",
        "persisting when promoted",
        "persisting failed",
        "waits for the lock",
        "doubts",
        "heartbeats replayed",
        "lies told",
        "losses of power checked",
        "processes ended because they hung",
        "starts refused",
        "strangers",
        "syncs failed",
        "takeovers in doubt",
        "epochs discarded",
        "fenced",
        "guests ended",
        "guests handed over",
        "guests left to their backup",
        "machines broken",
        "outputs repeated",
        "promotions",
        "resets",
        "solo grants",
    ] {
        let enough = seeds / 100;
        let count = totals.get(what).copied().unwrap_or(0);
        assert!(
            count >= enough,
            "{what}: only {count} times in {seeds} seeds"
        );
    }
}

/// A run of a few hosts with exactly these faults, at these milliseconds.
fn scenario(hosts: usize, faults: &[(u64, Fault)]) -> Report {
    let settings = Settings {
        seed: 7,
        hosts,
        policy: policy(),
        capture_failures_permille: 0,
        persist_failures_permille: 0,
        sync_failures_permille: 0,
        answers_lost_permille: 0,
        beats_lost_permille: 0,
        byte_ns: 8,
        may_repeat_late: false,
        strangers: faults.iter().any(|(_, fault)| fault.listens()),
        digests: false,
        faults: faults.iter().map(|(at, fault)| (ms(*at), *fault)).collect(),
        trace: from_environment("UNDERSTUDY_SIM_TRACE").is_some(),
    };
    World::new(settings)
        .run()
        .unwrap_or_else(|violation| panic!("{violation}; UNDERSTUDY_SIM_TRACE=1 shows the way"))
}

impl Report {
    #[track_caller]
    fn assert(&self, expected: &[(&str, u64)]) {
        for (what, count) in expected {
            let found = self.counts.get(what).copied().unwrap_or(0);
            assert_eq!(found, *count, "{what}: {self:#?}");
        }
    }
}

#[test]
fn without_faults_epochs_advance_and_nobody_doubts_the_generation() {
    let report = scenario(2, &[(700, Fault::Heal)]);
    report.assert(&[
        ("promotions", 0),
        ("went alone", 0),
        ("doubts", 0),
        ("epochs discarded", 0),
    ]);
    // 800 ms; the policy ends an epoch after 8 ms at the latest.
    assert!(report.counts["commits"] >= 100, "{report:#?}");
    assert_eq!(report.repeated, 0);
    assert!(report.outputs >= 200, "{report:#?}");
}

#[test]
fn a_dead_primary_is_replaced_and_the_new_one_protected_again() {
    for fault in [Fault::KillProcess(0), Fault::LoseHost(0)] {
        for at in 50..70 {
            let report = scenario(2, &[(at, fault)]);
            report.assert(&[("promotions", 1), ("fenced", 0), ("went alone", 0)]);
        }
    }
}

#[test]
fn a_dead_backup_leaves_the_primary_running_alone_until_another_comes() {
    for fault in [Fault::KillProcess(1), Fault::LoseHost(1)] {
        for at in 50..70 {
            let report = scenario(2, &[(at, fault)]);
            report.assert(&[("promotions", 0), ("fenced", 0), ("solo grants", 1)]);
        }
    }
}

#[test]
fn a_dismissed_backup_gives_its_copy_up_and_the_guest_goes_on_with_another() {
    for at in 50..70 {
        for alone in [ms(0), ms(100)] {
            let report = scenario(3, &[(at, Fault::Dismiss(0, alone))]);
            report.assert(&[
                ("backups dismissed", 1),
                ("promotions", 0),
                ("fenced", 0),
                ("solo grants", 1),
                ("resets", 1),
            ]);
        }
    }
}

#[test]
fn a_backup_that_is_being_dismissed_takes_over_unless_the_grant_was_given() {
    let (mut promoted, mut granted) = (0, 0);
    for at in 50..70 {
        for delay in 0..6 {
            let dismissed = (at, Fault::Dismiss(0, ms(0)));
            let report = scenario(2, &[dismissed, (at + delay, Fault::KillProcess(0))]);
            let promotions = report.counts.get("promotions").copied().unwrap_or(0);
            let alone = report.counts.get("solo grants").copied().unwrap_or(0);
            assert!(promotions + alone <= 1, "{report:#?}");
            promoted += promotions;
            granted += 1 - promotions;
        }
    }
    assert!(promoted > 0 && granted > 0, "{promoted}, {granted}");
}

#[test]
fn a_stalled_primary_never_speaks_after_its_successor() {
    let mut fenced = 0;
    for at in 50..90 {
        let long = Fault::Freeze(0, ms(120));
        let report = scenario(2, &[(at, long)]);
        report.assert(&[("promotions", 1)]);
        fenced += report.counts["fenced"];
        // Stalled too short to be replaced: it makes sure, and goes on.
        let short = Fault::Freeze(0, ms(30));
        let report = scenario(2, &[(at, short)]);
        report.assert(&[("promotions", 0), ("fenced", 0), ("went alone", 0)]);
        assert!(report.counts["doubts"] >= 1, "{report:#?}");
    }
    assert_eq!(fenced, 40);
}

#[test]
fn a_stalled_backup_costs_protection_and_nothing_else() {
    let report = scenario(2, &[(60, Fault::Freeze(1, ms(200)))]);
    report.assert(&[("promotions", 0), ("solo grants", 1), ("resets", 1)]);
}

#[test]
fn a_partition_leaves_one_of_the_two_running() {
    for at in 50..90 {
        let cut = [
            (at, Fault::CutOff(0, ms(150))),
            (at, Fault::CutOff(1, ms(150))),
        ];
        let report = scenario(2, &cut);
        let promoted = report.counts.get("promotions").copied().unwrap_or(0);
        let alone = report.counts.get("solo grants").copied().unwrap_or(0);
        assert_eq!(promoted + alone, 1, "{report:#?}");
    }
}

#[test]
fn neither_side_decides_without_the_arbiter() {
    let silent = (50, Fault::ArbiterSilent(ms(300)));
    let heal = (360, Fault::Heal);
    let report = scenario(2, &[silent, (60, Fault::KillProcess(0)), heal]);
    report.assert(&[("promotions", 1)]);
    assert!(report.counts["arbiter silent"] > 5, "{report:#?}");
    let report = scenario(2, &[silent, (60, Fault::KillProcess(1)), heal]);
    report.assert(&[("promotions", 0)]);
    assert!(report.counts["arbiter silent"] > 5, "{report:#?}");
}

#[test]
fn a_planned_promotion_moves_the_guest_once() {
    let report = scenario(2, &[(60, Fault::Promote(1))]);
    report.assert(&[("promotions", 1), ("fenced", 1), ("solo grants", 0)]);
}

#[test]
fn a_guest_that_stopped_is_not_taken_over() {
    let report = scenario(2, &[(60, Fault::StopGuest(0)), (100, Fault::LoseHost(0))]);
    report.assert(&[("promotions", 0), ("resets", 1)]);
}

#[test]
fn a_guest_that_ended_ends_wherever_it_is_taken_over() {
    // Before the backup has heard of it.
    let faults = [(60, Fault::StopGuest(0)), (60, Fault::LoseHost(0))];
    scenario(2, &faults).assert(&[("promotions", 1), ("ended guests promoted", 0)]);
    // After, but before the primary has ended: that waits for the arbiter, whom it asks as the link
    // is gone.
    let silent = (55, Fault::ArbiterSilent(ms(300)));
    let report = scenario(
        2,
        &[
            silent,
            (60, Fault::StopGuest(0)),
            (61, Fault::ResetLink(1)),
            (120, Fault::LoseHost(0)),
        ],
    );
    report.assert(&[("promotions", 1)]);
}

#[test]
fn pages_of_failed_captures_come_with_the_next_epoch() {
    let mut settings = settings(1, false);
    settings.faults = vec![(Duration::from_millis(600), Fault::Checkpoint(0))];
    // Rarely five in a row, at which a primary gives its backup up.
    settings.capture_failures_permille = 250;
    settings.persist_failures_permille = 0;
    settings.sync_failures_permille = 0;
    let report = World::new(settings).run().unwrap();
    assert!(report.counts["captures failed"] > 10, "{report:#?}");
    assert!(report.counts["commits"] > 15, "{report:#?}");
}

#[test]
fn what_hangs_for_a_while_loses_nothing_and_moves_nothing() {
    for (what, time) in [
        (What::Capture, 200),
        (What::Ship, 200),
        (What::SharedDisk, 200),
        (What::Journal, 60),
        (What::Flush, 60),
    ] {
        let host = usize::from(matches!(what, What::Journal | What::Flush));
        let hang = Fault::Hang(host, what, Some(ms(time)));
        let report = scenario(2, &[(60, hang), (270, Fault::Heal)]);
        report.assert(&[("promotions", 0), ("fenced", 0), ("went alone", 0)]);
        assert!(report.counts["calls that hung"] >= 1, "{report:#?}");
    }
}

/// The guest's output must not wait for it, nor the guest.
#[test]
fn a_backup_whose_storage_hangs_is_given_up_until_it_is_back() {
    for what in [What::Journal, What::Flush] {
        let hang = Fault::Hang(1, what, Some(ms(300)));
        let report = scenario(2, &[(60, hang), (370, Fault::Heal)]);
        report.assert(&[("promotions", 0), ("fenced", 0), ("solo grants", 1)]);
        assert!(report.counts["releases"] > 20, "{what:?}: {report:#?}");
    }
}

#[test]
fn a_grant_whose_answer_hangs_is_used_when_it_comes() {
    let hang = Fault::Hang(1, What::Answer, Some(ms(200)));
    let report = scenario(
        2,
        &[(60, hang), (61, Fault::LoseHost(0)), (400, Fault::Heal)],
    );
    report.assert(&[("promotions", 1), ("fenced", 0)]);
}

#[test]
fn flushed_epochs_survive_syncs_that_fail() {
    let mut failed = 0;
    for seed in 0..20 {
        let mut settings = settings(seed, false);
        let lost = [150, 300].map(|at| (ms(at), Fault::LoseHost(1)));
        settings.faults = lost.into_iter().chain([(ms(400), Fault::Heal)]).collect();
        settings.sync_failures_permille = 150;
        let report = World::new(settings).run().unwrap();
        failed += report.counts.get("syncs failed").copied().unwrap_or(0);
    }
    assert!(failed > 20, "{failed}");
}

#[test]
fn a_dead_primary_is_not_kept_alive_by_heartbeats_of_the_past() {
    let faults = [(50, Fault::ReplayBeats), (60, Fault::LoseHost(0))];
    let report = scenario(2, &faults);
    report.assert(&[("promotions", 1)]);
    assert!(report.counts["heartbeats replayed"] > 10, "{report:#?}");
}

#[test]
fn the_guest_of_a_machine_that_breaks_goes_on_at_the_other_host() {
    let counts = [
        ("machines broken", 1),
        ("promotions", 1),
        ("solo grants", 0),
    ];
    for at in 50..70 {
        let breaks = (at, Fault::BreakMachine(0));
        scenario(2, &[breaks, (150, Fault::Heal)]).assert(&counts);
        // Whatever else is wrong, nobody claims the guest from its copy.
        for trouble in [Fault::ArbiterSilent(ms(60)), Fault::CutOff(1, ms(60))] {
            let faults = [(at - 5, trouble), breaks, (300, Fault::Heal)];
            scenario(2, &faults).assert(&counts);
        }
        // Also if it was about to claim the guest, because it has lost the backup.
        let lost = [
            (at - 5, Fault::ArbiterSilent(ms(60))),
            (at, Fault::ResetLink(1)),
            (at + 4, Fault::BreakMachine(0)),
            (300, Fault::Heal),
        ];
        scenario(2, &lost).assert(&counts);
    }
}

#[test]
fn a_guest_that_is_handed_over_goes_on_at_the_other_host() {
    let report = scenario(2, &[(60, Fault::HandOver(0)), (150, Fault::Heal)]);
    let counts = [("guests handed over", 1), ("promotions", 1), ("fenced", 1)];
    report.assert(&counts);
    // What the backup is not granted stays here; both ask.
    let mut stayed = 0;
    for at in 55..75 {
        let faults = [
            (at - 1, Fault::CutOff(1, ms(100))),
            (at, Fault::HandOver(0)),
            (250, Fault::Heal),
        ];
        let report = scenario(2, &faults);
        let count = |what| report.counts.get(what).copied().unwrap_or(0);
        stayed += count("guests not handed over");
        assert!(
            count("guests not handed over") + count("promotions") >= 1,
            "{report:#?}"
        );
    }
    assert!(stayed > 0, "it never stays");
}

#[test]
fn a_strangers_guest_is_not_copied_by_who_waits() {
    let story = Fault::Stranger(1, Story::OtherGuest, ms(10));
    let report = scenario(2, &[(0, story), (150, Fault::Heal)]);
    report.assert(&[("strangers", 1), ("promotions", 0), ("fenced", 0)]);
}

#[test]
fn a_lone_primary_whose_guest_was_started_elsewhere_finds_out_by_itself() {
    let report = scenario(2, &[(0, Fault::StartGuest(1, true)), (50, Fault::Heal)]);
    report.assert(&[("starts beside a holder", 1), ("fenced", 1)]);
    // Unless the storage says that the holder is dead, or a standby may have a copy, it is refused.
    for (at, lapsed) in [(0, false), (60, false), (60, true)] {
        let report = scenario(2, &[(at, Fault::StartGuest(1, lapsed))]);
        report.assert(&[("starts refused", 1), ("starts beside a holder", 0)]);
    }
}
