//! Faults of hosts and networks, seen by a client that downloads a file from the web guest.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::super::client::Download;
use super::super::guest::WEB_LINES;
use super::super::lab::Lab;
use super::super::network::{Network, Side};
use super::super::vmm;
use super::super::wait::{say, until};

/// Exit code of a `vmm` that found that another host owns the guest.
const FENCED: i32 = 3;
/// How long a download takes if nothing happens.
const DOWNLOAD: Duration = Duration::from_secs(20);
/// Bytes after which something happens.
const MIDDLE: u64 = 1 << 20;

pub(super) fn download(lab: &mut Lab, vcpus: u8) -> Result<()> {
    let web = lab.web.clone();
    lab.protect(&web, vcpus)?;
    fail_during_download(lab, Side::A, vcpus)
}

pub(super) fn there_and_back(lab: &mut Lab) -> Result<()> {
    let web = lab.web.clone();
    lab.protect(&web, 2)?;
    for side in Side::BOTH {
        fail_during_download(lab, side, 2)?;
        lab.rejoin(side)?;
        lab.await_protected(side.other())?;
        let status = lab.status(side.other())?.unwrap_or_default();
        let repaired = status["failover"].clone();
        ensure!(
            repaired["repair_ms"].is_number(),
            "no repair time in {status}"
        );
        lab.measure(format!("repair on {}", side.name()), repaired, None);
    }
    Ok(())
}

/// The host with the guest loses power while a client downloads; the client gets every byte.
fn fail_during_download(lab: &mut Lab, side: Side, vcpus: u8) -> Result<()> {
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(MIDDLE)?;
    lab.power_off(side)?;
    let failover = lab.await_takeover(side.other())?;
    let done = download.finish()?;
    say(format_args!(
        "{} bytes, all right; longest wait {} ms",
        done.bytes,
        done.gap.as_millis()
    ));
    let what = format!("power failure of {}, {vcpus} vCPUs", side.name());
    lab.measure(what, failover, Some(done.gap));
    Ok(())
}

pub(super) fn freeze(lab: &mut Lab) -> Result<()> {
    let web = lab.web.clone();
    lab.protect(&web, 1)?;
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(MIDDLE)?;
    lab.freeze(Side::A)?;
    let failover = lab.await_takeover(Side::B)?;
    let mark = lab.speakers.mark()?;
    lab.thaw(Side::A)?;
    let (code, words) = lab.await_end(Side::A)?;
    ensure!(code == FENCED, "the old primary ended with {code}: {words}");
    ensure!(
        words.contains("fenced"),
        "the old primary did not say that it is fenced: {words}"
    );
    let done = download.finish()?;
    lab.check_only_speaker(Side::B, mark)?;
    lab.measure("host-a froze, went on later", failover, Some(done.gap));
    Ok(())
}

pub(super) fn cut_channel(lab: &mut Lab) -> Result<()> {
    let web = lab.web.clone();
    lab.protect(&web, 1)?;
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(MIDDLE)?;
    // Clients still reach both.
    lab.cut(Network::Channel, Side::A)?;
    let (owner, mark) = await_owner(lab)?;
    let done = download.finish()?;
    lab.check_only_speaker(owner, mark)?;
    let status = lab.status(owner)?.unwrap_or_default();
    lab.measure(
        format!("channel cut, {} goes on", owner.name()),
        status["failover"].clone(),
        Some(done.gap),
    );
    lab.heal(Network::Channel, Side::A)?;
    lab.rejoin(owner.other())?;
    lab.await_protected(owner)
}

/// Waits until one host runs the guest alone; returns which, and the place in the speakers' log by then.
fn await_owner(lab: &Lab) -> Result<(Side, usize)> {
    until("one host to go on alone", Duration::from_secs(60), || {
        let mark = lab.speakers.mark()?;
        let mut owner = None;
        for side in Side::BOTH {
            let Some(status) = lab.status(side)? else {
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

pub(super) fn cut_off(lab: &mut Lab) -> Result<()> {
    let web = lab.web.clone();
    lab.protect(&web, 2)?;
    let download = Download::start(WEB_LINES, DOWNLOAD)?;
    download.await_bytes(MIDDLE)?;
    let networks = [Network::Service, Network::Channel, Network::Storage];
    for network in networks {
        lab.cut(network, Side::A)?;
    }
    let failover = lab.await_takeover(Side::B)?;
    // Longer than any time-out: the old primary must have noticed by then.
    until(
        "the old primary to hold its output",
        2 * vmm::timeout(),
        || {
            let status = lab.status(Side::A)?;
            Ok((status.is_none_or(|status| status["protected"] == false)).then_some(()))
        },
    )?;
    let mark = lab.speakers.mark()?;
    for network in networks {
        lab.heal(network, Side::A)?;
    }
    let (code, words) = lab.await_end(Side::A)?;
    ensure!(code == FENCED, "the old primary ended with {code}: {words}");
    let done = download.finish()?;
    lab.check_only_speaker(Side::B, mark)?;
    lab.measure("host-a cut off", failover, Some(done.gap));
    lab.rejoin(Side::A)?;
    lab.await_protected(Side::B)
}
