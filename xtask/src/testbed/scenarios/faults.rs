//! Faults of hosts and networks, seen by a client that downloads a file from the web guest.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::super::client::Download;
use super::super::guest::WEB_LINES;
use super::super::luck::Luck;
use super::super::network::{Network, Side};
use super::super::two_hosts::Testbed;
use super::super::wait::{say, until};

/// Exit code of a `vmm` that found that another host owns the guest.
const FENCED: i32 = 3;
/// How long a download takes if nothing happens.
const DOWNLOAD: Duration = Duration::from_secs(20);
/// Bytes after which something happens.
const MIDDLE: u64 = 1 << 20;
/// What the management network and the standby's link do not belong to.
const CUT_OFF: [Network; 3] = [Network::Service, Network::Channel, Network::Storage];

/// What happens to the host with the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    PowerFailure,
    /// It hangs, and goes on after the takeover.
    Freeze,
    /// Cut off from everything, and back after the takeover.
    CutOff,
}

impl Fault {
    const ALL: [Self; 3] = [Self::PowerFailure, Self::Freeze, Self::CutOff];

    pub(super) fn random(luck: &mut Luck) -> Self {
        Self::ALL[luck.below(Self::ALL.len() as u64) as usize]
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::PowerFailure => "power failure",
            Self::Freeze => "freeze",
            Self::CutOff => "cut off",
        }
    }
}

/// Lets a fault happen to the host with the guest, and waits until the other one runs it and has announced it. An old primary that
/// comes back must stop, say why, and not have spoken. Returns `failover` of the new primary's status.
pub(super) fn strike(testbed: &mut Testbed, fault: Fault, side: Side) -> Result<Value> {
    let announced = testbed.announcements.mark();
    match fault {
        Fault::PowerFailure => testbed.power_off(side)?,
        Fault::Freeze => testbed.freeze(side)?,
        Fault::CutOff => CUT_OFF
            .iter()
            .try_for_each(|network| testbed.cut(*network, side))?,
    }
    let failover = testbed.await_takeover(side.other())?;
    let kinds = (testbed.announcements).await_from(side.other(), announced)?;
    say(format_args!(
        "{} has announced the guest {} times",
        side.other().name(),
        kinds.len()
    ));
    let mark = testbed.speakers.mark()?;
    match fault {
        Fault::PowerFailure => return Ok(failover),
        Fault::Freeze => testbed.thaw(side)?,
        Fault::CutOff => CUT_OFF
            .iter()
            .try_for_each(|network| testbed.heal(*network, side))?,
    }
    let (code, words) = testbed.await_end(side)?;
    ensure!(code == FENCED, "the old primary ended with {code}: {words}");
    ensure!(
        words.contains("fenced"),
        "the old primary did not say that it is fenced: {words}"
    );
    testbed.check_only_speaker(side.other(), mark)?;
    say(format_args!("{} is fenced and silent", side.name()));
    Ok(failover)
}

/// A fault hits the host with the guest while a client downloads; the client gets every byte.
fn during_download(testbed: &mut Testbed, fault: Fault, side: Side, bytes: u64) -> Result<()> {
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(bytes)?;
    let failover = strike(testbed, fault, side)?;
    let done = download.finish()?;
    say(format_args!(
        "{} bytes, all right; longest wait {} ms",
        done.bytes,
        done.gap.as_millis()
    ));
    let what = format!("{} of {}", fault.name(), side.name());
    testbed.measure(what, failover, Some(done.gap));
    Ok(())
}

/// The host that failed becomes the standby, and the time that took is noted. Its disks get what has changed.
pub(super) fn repair(testbed: &mut Testbed, failed: Side) -> Result<()> {
    testbed.rejoin(failed)?;
    testbed.await_protected(failed.other())?;
    let status = testbed.status(failed.other())?.unwrap_or_default();
    let repair_ms = status["failover"]["repair_ms"].as_f64();
    let repair_ms = repair_ms.with_context(|| format!("no repair time in {status}"))?;
    testbed.repaired(repair_ms, resynchronised(&status)?);
    Ok(())
}

/// How many bytes of replicated disks went to the host that came back: by far not all.
fn resynchronised(status: &Value) -> Result<Option<u64>> {
    let disks = status["disks"]["disks"].as_array();
    let bytes_all: u64 = (disks.into_iter().flatten())
        .filter(|disk| disk["mode"] == "replicated")
        .filter_map(|disk| disk["bytes"].as_u64())
        .sum();
    if bytes_all == 0 {
        return Ok(None);
    }
    let sync = &status["disks"]["sync"];
    let full = sync["full"].as_array();
    ensure!(
        full.is_some_and(|full| !full.is_empty() && full.iter().all(|disk| *disk == false)),
        "a disk was copied as a whole: {sync}"
    );
    let sent = sync["bytes_sent"].as_u64();
    let sent = sent.with_context(|| format!("no bytes sent in {sync}"))?;
    ensure!(
        sent > 0 && sent < bytes_all / 4,
        "{sent} bytes were sent again of {bytes_all}"
    );
    say(format_args!("{sent} bytes of {bytes_all} were sent again"));
    Ok(Some(sent))
}

pub(super) fn one(testbed: &mut Testbed, fault: Fault, vcpus: u8) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, vcpus)?;
    during_download(testbed, fault, Side::A, MIDDLE)
}

pub(super) fn there_and_back(testbed: &mut Testbed) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, 2)?;
    for side in Side::BOTH {
        during_download(testbed, Fault::PowerFailure, side, MIDDLE)?;
        repair(testbed, side)?;
    }
    Ok(())
}

/// Faults of all kinds at random moments of downloads, from host to host and back.
pub(super) fn random(testbed: &mut Testbed) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, 2)?;
    let mut side = Side::A;
    let times = testbed.luck.times;
    for time in 1..=times {
        let fault = Fault::random(&mut testbed.luck);
        let bytes = testbed.luck.below(3 * MIDDLE);
        say(format_args!(
            "--- {time} of {times}: {} after {bytes} bytes",
            fault.name()
        ));
        during_download(testbed, fault, side, bytes)?;
        repair(testbed, side)?;
        side = side.other();
    }
    say(format_args!("{times} failovers at random moments"));
    Ok(())
}

pub(super) fn cut_channel(testbed: &mut Testbed) -> Result<()> {
    let web = testbed.web.clone();
    testbed.protect(&web, 1)?;
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(MIDDLE)?;
    // Clients still reach both.
    testbed.cut(Network::Channel, Side::A)?;
    let (owner, mark) = await_owner(testbed)?;
    let done = download.finish()?;
    testbed.check_only_speaker(owner, mark)?;
    let status = testbed.status(owner)?.unwrap_or_default();
    testbed.measure(
        format!("channel cut, {} goes on", owner.name()),
        status["failover"].clone(),
        Some(done.gap),
    );
    testbed.heal(Network::Channel, Side::A)?;
    testbed.rejoin(owner.other())?;
    testbed.await_protected(owner)
}

/// Waits until one host runs the guest alone; returns which, and the place in the speakers' log by then.
fn await_owner(testbed: &Testbed) -> Result<(Side, usize)> {
    until("one host to go on alone", Duration::from_secs(60), || {
        let mark = testbed.speakers.mark()?;
        let mut owner = None;
        for side in Side::BOTH {
            let Some(status) = testbed.status(side)? else {
                continue;
            };
            let generation = status["generation"].as_u64().context("no generation")?;
            if status["role"] == "primary" && generation > 1 {
                if let Some(first) = owner {
                    bail!("{first:?} and {side:?} both run the guest");
                }
                owner = Some(side);
            }
        }
        Ok(owner.map(|owner| (owner, mark)))
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_host_that_comes_back_gets_only_what_has_changed() {
        let status = |mode: &str, full: bool, sent: u64| {
            let disk = json!({ "name": "root", "mode": mode, "bytes": 1000 });
            let sync = json!({ "full": [full], "bytes_sent": sent });
            json!({ "disks": { "disks": [disk], "sync": sync } })
        };
        assert_eq!(
            resynchronised(&status("replicated", false, 249)).unwrap(),
            Some(249)
        );
        assert_eq!(resynchronised(&status("shared", true, 1000)).unwrap(), None);
        for (full, sent) in [(true, 249), (false, 250), (false, 0)] {
            assert!(resynchronised(&status("replicated", full, sent)).is_err());
        }
        assert_eq!(resynchronised(&json!({})).unwrap(), None);
    }
}
