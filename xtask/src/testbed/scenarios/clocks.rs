//! Guests and hosts whose time does not just pass: a guest that has suspended itself, one whose clock is behind after
//! a takeover, hosts whose clocks jump.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use super::super::chrony;
use super::super::client::Download;
use super::super::guest::{self, WEB_LINES};
use super::super::network::{GUEST, Network, Side};
use super::super::two_hosts::Testbed;
use super::super::vmm;
use super::super::wait::{say, until};
use super::faults::repair;

/// For a guest that answers.
const ANSWER: Duration = Duration::from_secs(60);
/// After that long a guest is taken for one that sleeps.
const SILENCE: Duration = Duration::from_secs(5);
/// How long a download takes while clocks jump.
const DOWNLOAD: Duration = Duration::from_secs(40);
/// Bytes of it before each jump.
const BETWEEN_JUMPS: u64 = 512 << 10;
/// How far off the guest's clock may be once it had the time.
const CLOCK_OFF_MAX_S: f64 = 0.05;
/// The time that it has after a takeover, and how long it is looked at.
const CLOCK_IS_RIGHT_AFTER: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_secs(20);
const BETWEEN_LOOKS: Duration = Duration::from_millis(100);
/// How far off a host's clock may be.
const HOST_OFF_MAX_S: f64 = 0.02;
/// Questions of which the one counts that was fastest on its way.
const QUESTIONS: usize = 3;
const SETTLED: Duration = Duration::from_secs(120);

/// How far a clock is set.
const JUMP_S: i64 = 3600;

/// A guest suspends itself, its host fails, and on the other one its power button wakes it.
pub(super) fn suspended(testbed: &mut Testbed) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, 1)?;
    // What programs in the guest are told of the button is kept.
    guest::shell(
        "dd if=/dev/input/event0 of=/keys bs=24 count=1 &
         (sleep 1; echo freeze > /sys/power/state) &",
        ANSWER,
    )?;
    until("the guest to sleep", ANSWER, || {
        Ok(guest::shell("true", SILENCE).is_err().then_some(()))
    })?;
    testbed.await_protected(Side::A)?;
    testbed.power_off(Side::A)?;
    let failover = testbed.await_takeover(Side::B)?;
    testbed.measure("a guest that has suspended itself", failover, None);
    ensure!(
        guest::shell("true", SILENCE).is_err(),
        "the guest woke by itself"
    );
    vmm::press_power_button(testbed.host(Side::B))?;
    let said = guest::shell(
        "cat /sys/power/suspend_stats/success /sys/firmware/acpi/interrupts/ff_pwr_btn; wc -c < /keys",
        ANSWER,
    )?;
    let words: Vec<&str> = said.split_whitespace().collect();
    ensure!(
        words.starts_with(&["1", "1"]) && words.ends_with(&["0"]),
        "not one suspend, and one press that no program was told of: {said}"
    );
    say("the guest is awake");
    Ok(())
}

/// The clocks of both hosts are set ahead and back, one after the other, while a client downloads.
pub(super) fn jump(testbed: &mut Testbed) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, 1)?;
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    let mut bytes = 0;
    for side in Side::BOTH {
        for seconds in [JUMP_S, -JUMP_S] {
            bytes += BETWEEN_JUMPS;
            download.await_bytes(bytes)?;
            let set = format!("date -s @$(($(date +%s) + {seconds}))");
            let now = testbed.host(side).must(&set)?;
            say(format_args!(
                "{}'s clock is set: {}",
                side.name(),
                now.trim()
            ));
            check_undisturbed(testbed)?;
        }
    }
    let done = download.finish()?;
    check_undisturbed(testbed)?;
    testbed.measure(
        "clocks set an hour ahead and back",
        serde_json::Value::Null,
        Some(done.gap),
    );
    ensure!(
        done.gap < vmm::timeout(),
        "a client waited {} ms for its next byte",
        done.gap.as_millis()
    );
    Ok(())
}

/// The guest's clock is behind after a takeover by as long as that took, and chrony sets it by its new host's.
pub(super) fn corrected(testbed: &mut Testbed) -> Result<()> {
    let _server = chrony::Server::start(&testbed.directory)?;
    chrony::share(&testbed.shared())?;
    testbed.protect(&guest::clock(&testbed.directory)?, 1)?;
    guest::shell(chrony::IN_GUEST, ANSWER)?;
    let mut worst_s = 0f64;
    let mut side = Side::A;
    for host in Side::BOTH {
        keep_right(testbed, host)?;
    }
    let times = testbed.luck.times;
    for time in 1..=times {
        until("the guest's clock to be right", SETTLED, || {
            Ok(ahead_s(GUEST)?.filter(|ahead| ahead.abs() < CLOCK_OFF_MAX_S))
        })?;
        testbed.power_off(side)?;
        let failover = testbed.await_takeover(side.other())?;
        let off_s = watch()?;
        say(format_args!(
            "--- {time} of {times}: {:.1} ms off in the end",
            off_s * 1e3
        ));
        worst_s = worst_s.max(off_s);
        testbed.measure(
            format!("clock {:.1} ms off after it", off_s * 1e3),
            failover,
            None,
        );
        if time < times {
            repair(testbed, side)?;
            keep_right(testbed, side)?;
        }
        side = side.other();
    }
    say(format_args!(
        "at most {:.1} ms off, {times} times",
        worst_s * 1e3
    ));
    Ok(())
}

/// A host sets its clock by this side's.
fn keep_right(testbed: &mut Testbed, side: Side) -> Result<()> {
    let shared = testbed.shared_in_hosts();
    chrony::start_in(testbed.host(side), &shared)?;
    let address = Network::Management.address(side);
    let ahead = until("the host's clock to be right", SETTLED, || {
        Ok(ahead_s(&address)?.filter(|ahead| ahead.abs() < HOST_OFF_MAX_S))
    })?;
    say(format_args!(
        "{} is {:.1} ms ahead",
        side.name(),
        ahead * 1e3
    ));
    Ok(())
}

/// Looks at the guest's clock after a takeover: it must be right in time, and never too far ahead. Returns how far off
/// it was at most once it had to be right.
fn watch() -> Result<f64> {
    let begin = Instant::now();
    let mut off_s = 0f64;
    let mut right_after = None;
    while begin.elapsed() < LOOK {
        std::thread::sleep(BETWEEN_LOOKS);
        let Some(ahead) = ahead_s(GUEST)? else {
            continue;
        };
        let now = begin.elapsed();
        ensure!(
            ahead < CLOCK_OFF_MAX_S,
            "the guest's clock is {ahead} s ahead"
        );
        if ahead.abs() < CLOCK_OFF_MAX_S {
            right_after.get_or_insert(now);
        }
        if now > CLOCK_IS_RIGHT_AFTER {
            off_s = off_s.max(ahead.abs());
            ensure!(
                off_s < CLOCK_OFF_MAX_S,
                "the guest's clock is {ahead} s off after {now:?}"
            );
        }
    }
    let right_after = right_after.context("the guest did not tell its time")?;
    say(format_args!(
        "right after {:.1} s",
        right_after.as_secs_f64()
    ));
    Ok(off_s)
}

/// How far a clock is ahead of this side's, by the fastest of several questions.
fn ahead_s(address: &str) -> Result<Option<f64>> {
    let mut least: Option<f64> = None;
    for _ in 0..QUESTIONS {
        if let Some(ahead) = chrony::ahead_s(address, SILENCE)? {
            least = Some(least.map_or(ahead, |least| least.min(ahead)));
        }
    }
    Ok(least)
}

/// The pair is as it began.
fn check_undisturbed(testbed: &Testbed) -> Result<()> {
    testbed.check_runs(Side::B)?;
    let status = testbed.status(Side::A)?.unwrap_or_default();
    ensure!(
        status["role"] == "primary" && status["protected"] == true && status["generation"] == 1,
        "the pair was disturbed: {status}"
    );
    Ok(())
}
