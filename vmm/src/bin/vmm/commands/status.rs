//! `vmm status`, `vmm events`, `vmm failover`, `vmm stop`, `vmm power-button`: talk to a running `vmm` over its control socket.

use std::time::Duration;

use anyhow::{Result, bail};
use understudy_vmm::control::{self, ControlError};
use understudy_vmm::node::{
    Denial, EventKind, NodeEvent, NodeMetrics, NodeStatus, OutputCounts, Percentiles, Request,
    RoleStatus, Side, Status, UnprotectedStatus,
};

use crate::args::{ControlArgs, EventsArgs, StatusArgs, StopArgs};
use crate::say;

/// Events that a person is shown.
const EVENTS_SHOWN: usize = 4;
/// How long one question waits for the next event.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn status(arguments: &StatusArgs) -> Result<()> {
    loop {
        let status = control::status(&arguments.control.control)?;
        if arguments.json {
            say::line(serde_json::to_string(&status)?)?;
        } else {
            say::print(render(&status))?;
        }
        if !arguments.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(crate) fn events(arguments: &EventsArgs) -> Result<()> {
    let (mut last, mut patience) = (0, Duration::ZERO);
    loop {
        let events = control::events(&arguments.control.control, last, patience)?;
        for event in &events {
            if arguments.json {
                say::line(serde_json::to_string(event)?)?;
            } else {
                say::line(format_args!("{:>5}  {}", event.number, event_line(event)))?;
            }
            last = event.number;
        }
        let has_ended = matches!(
            events.last().map(|event| &event.what),
            Some(EventKind::Ended(_))
        );
        if has_ended || !arguments.follow {
            return Ok(());
        }
        patience = FOLLOW_PATIENCE;
    }
}

pub(crate) fn failover(arguments: &ControlArgs) -> Result<()> {
    control::request(&arguments.control, Request::Failover)?;
    say::line("failover requested; `vmm status` on the standby's host shows when it has happened")?;
    Ok(())
}

pub(crate) fn stop(arguments: &StopArgs) -> Result<()> {
    if arguments.graceful {
        return stop_gracefully(arguments);
    }
    match control::request(&arguments.control.control, Request::Stop) {
        Ok(()) => say::line("stop requested"),
        // It ended at just that moment.
        Err(ControlError::Denied(Denial::Ended) | ControlError::Gone { .. }) => {
            say::line("it has ended already")
        }
        Err(error) => Err(error.into()),
    }
}

fn stop_gracefully(arguments: &StopArgs) -> Result<()> {
    let path = &arguments.control.control;
    let patience_s = arguments.patience_s;
    // Before the button is pressed: the guest may end at once.
    let end = control::watch_end(path, Duration::from_secs(patience_s))?;
    control::request(path, Request::PowerButton)?;
    say::line("power button pressed; waiting for the guest to shut down")?;
    if end.wait()? {
        return say::line("the guest has ended, and its vmm with it");
    }
    if let Some(Status {
        ending: Some(awaits),
        ..
    }) = control::status(path)?.replication()
    {
        bail!(
            "the guest has ended, but what it said last has not left within {patience_s} s: it waits for {awaits}. \
             It goes on waiting; to give that output up, `vmm stop` twice"
        );
    }
    bail!(
        "the guest has not shut down within {patience_s} s, and runs on: it may not listen to its power button \
         (Linux: module `button`, and acpid or systemd-logind); `vmm stop` without --graceful ends it at once"
    )
}

pub(crate) fn power_button(arguments: &ControlArgs) -> Result<()> {
    control::request(&arguments.control, Request::PowerButton)?;
    say::line("power button pressed; the guest shuts down if it listens")?;
    Ok(())
}

/// The status for a person.
fn render(status: &NodeStatus) -> String {
    let mut text = match &status.role {
        RoleStatus::Replicated(role) => replicated(role, &status.metrics),
        RoleStatus::Unprotected(role) => unprotected(role, status),
    };
    let guest = &status.guest;
    if guest.restarts > 0 {
        text += &line("restarts", &guest.restarts.to_string());
    }
    if let Some(alarm) = &guest.alarm {
        text += &line("guest", alarm);
    }
    for alarm in &status.host_alarms {
        text += &line("alarm", alarm);
    }
    let skipped = status.events.len().saturating_sub(EVENTS_SHOWN);
    for (number, event) in status.events.iter().skip(skipped).enumerate() {
        text += &line(if number == 0 { "events" } else { "" }, &event_line(event));
    }
    text
}

/// An event for a person, with its time of day (UTC).
fn event_line(event: &NodeEvent) -> String {
    let seconds = event.at_unix_ms / 1000 % 86_400;
    format!(
        "{:02}:{:02}:{:02} {}",
        seconds / 3600,
        seconds / 60 % 60,
        seconds % 60,
        event.what
    )
}

fn replicated(status: &Status, metrics: &NodeMetrics) -> String {
    let mut text = format!("{} on {}: {}\n", status.vm, status.node, headline(status));
    let mut line = |name: &str, value: String| text.push_str(&line(name, &value));
    line(
        "state",
        format!(
            "{}, generation {}, epoch {}",
            status.phase, status.generation, status.epoch
        ),
    );
    line("epochs", status.epochs.to_string());
    if let Some(peer) = &status.peer {
        let silence = status.silence_timeout_ms;
        line(
            "silence",
            format!("{peer} counts as lost after {silence} ms"),
        );
    }
    line("output", output(&status.output));
    if status.side == Side::Primary && status.pause_us.count > 0 {
        line("pause", times(&status.pause_us));
        line("ack", times(&status.ack_us));
        let pages = &status.dirty_pages;
        line(
            "dirty",
            format!(
                "p50 {} pages, p99 {}, max {}; {} pages not write-protected",
                pages.p50, pages.p99, pages.max, status.open_pages
            ),
        );
        if status.slowed_percent > 0.0 {
            let slowed = status.slowed_percent;
            line(
                "slowed",
                format!("by {slowed} %, because its changes cannot be shipped any faster"),
            );
        }
        let encoded = &status.encoded;
        line(
            "sent",
            format!(
                "{:.1} MiB for {:.1} MiB of dirty pages ({} delta, {} compressed, {} raw, {} unchanged, {} zero)",
                mib(status.wire_bytes),
                mib(status.raw_dirty_bytes),
                encoded.delta,
                encoded.compressed,
                encoded.raw,
                encoded.unchanged,
                encoded.zero,
            ),
        );
    }
    for (name, disk) in super::disk_status::lines(status, &metrics.blk) {
        line(&name, disk);
    }
    if let Some(failover) = &status.failover {
        let repair = failover.repair_ms.map_or_else(
            || "not protected again yet".into(),
            |ms| format!("repair {ms:.1} ms"),
        );
        let outage = outage(failover.reaction_ms, failover.recovery_ms);
        line(
            "failover",
            format!(
                "at epoch {}: outage {outage}, {repair} ({})",
                failover.epoch, failover.cause
            ),
        );
    }
    if let Some(alarm) = &status.alarm {
        line("alarm", alarm.clone());
    }
    text
}

/// An outage and its parts, as they add up: each rounded alone, they would not always.
pub(super) fn outage(reaction_ms: f64, recovery_ms: f64) -> String {
    let tenth = |ms: f64| (ms * 10.0).round() / 10.0;
    let (reaction, recovery) = (tenth(reaction_ms), tenth(recovery_ms));
    let outage = reaction + recovery;
    format!("{outage:.1} ms (reaction {reaction:.1} ms, recovery {recovery:.1} ms)")
}

fn unprotected(status: &UnprotectedStatus, node: &NodeStatus) -> String {
    let mut text = format!("{} on {}: unprotected run\n", status.vm, status.node);
    text += &line("state", &format!("running for {} s", node.uptime_s));
    text += &line("output", &output(&status.output));
    for (name, disk) in super::disk_status::run_lines(&status.disks, &node.metrics.blk) {
        text += &line(&name, &disk);
    }
    text
}

fn line(name: &str, value: &str) -> String {
    format!("  {name:<10}{value}\n")
}

fn output(counts: &OutputCounts) -> String {
    let console = match counts.console_bytes_lost {
        0 => String::new(),
        bytes => format!("; {bytes} bytes of the console LOST"),
    };
    format!(
        "{:.1} MiB held, {} frames sent, {} dropped{console}",
        mib(counts.held_bytes),
        counts.frames_sent,
        counts.frames_dropped
    )
}

fn headline(status: &Status) -> String {
    let peer = status.peer.as_deref().unwrap_or("nobody");
    if let Some(awaits) = &status.ending {
        return format!("the guest has ended; what it said last waits for {awaits}");
    }
    match (status.side, status.protected) {
        (Side::Primary, true) => format!("primary, protected by {peer}"),
        (Side::Primary, false) if super::is_undecided(status) => {
            "primary, NOT protected; output is held until the arbiter says who goes on".into()
        }
        (Side::Primary, false) => "primary, NOT protected".into(),
        (Side::Standby, true) => format!("standby, in sync with {peer}"),
        (Side::Standby, false) => "standby, not in sync".into(),
    }
}

fn times(times: &Percentiles) -> String {
    let ms = |us: u64| us as f64 / 1e3;
    format!(
        "p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        ms(times.p50),
        ms(times.p99),
        ms(times.max)
    )
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / (1 << 20) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_parts_of_an_outage_add_up() {
        // Rounded alone, the outage of 2.52 ms would be smaller than its parts.
        let text = outage(1.26, 1.26);
        assert_eq!(text, "2.6 ms (reaction 1.3 ms, recovery 1.3 ms)");
        assert_eq!(
            outage(0.0, 0.24),
            "0.2 ms (reaction 0.0 ms, recovery 0.2 ms)"
        );
    }

    #[test]
    fn a_primary_whose_output_is_held_is_said_to_hold_it() {
        let mut status = Status {
            phase: "claiming".into(),
            ..Status::default()
        };
        assert!(
            headline(&status).contains("output is held until the arbiter"),
            "{}",
            headline(&status)
        );
        status.phase = "alone".into();
        assert_eq!(headline(&status), "primary, NOT protected");
    }

    #[test]
    fn console_output_that_is_lost_is_not_kept_secret() {
        let mut counts = OutputCounts::default();
        assert!(!output(&counts).contains("console"));
        counts.console_bytes_lost = 7;
        assert!(output(&counts).ends_with("; 7 bytes of the console LOST"));
    }
}
