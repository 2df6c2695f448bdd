//! `vmm status`, `vmm events`, `vmm failover`, `vmm stop`, `vmm power-button`: talk to a running `vmm` over its control socket.

use std::io::Write;
use std::time::Duration;

use anyhow::{Result, bail};
use understudy_vmm::control;
use understudy_vmm::node::{
    EventKind, NodeEvent, NodeStatus, OutputCounts, Percentiles, Request, RoleStatus, Side, Status,
    UnprotectedStatus,
};

use crate::args::{ControlArgs, EventsArgs, StatusArgs, StopArgs};

/// Events that a person is shown.
const EVENTS_SHOWN: usize = 4;
/// How long one question waits for the next event.
const FOLLOW_PATIENCE: Duration = Duration::from_secs(60);

pub(crate) fn status(arguments: &StatusArgs) -> Result<()> {
    loop {
        let status = control::status(&arguments.control.control)?;
        // Who reads this may go away, for example `head`: an error, no panic.
        let mut out = std::io::stdout().lock();
        if arguments.json {
            writeln!(out, "{}", serde_json::to_string(&status)?)?;
        } else {
            write!(out, "{}", render(&status))?;
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
        let mut out = std::io::stdout().lock();
        for event in &events {
            if arguments.json {
                writeln!(out, "{}", serde_json::to_string(event)?)?;
            } else {
                writeln!(out, "{:>5}  {}", event.number, event_line(event))?;
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
    println!("promotion requested; `vmm status` shows when it has happened");
    Ok(())
}

pub(crate) fn stop(arguments: &StopArgs) -> Result<()> {
    if arguments.graceful {
        return stop_gracefully(arguments);
    }
    control::request(&arguments.control.control, Request::Stop)?;
    println!("stop requested");
    Ok(())
}

fn stop_gracefully(arguments: &StopArgs) -> Result<()> {
    let path = &arguments.control.control;
    control::request(path, Request::PowerButton)?;
    println!("power button pressed; waiting for the guest to shut down");
    let patience_s = arguments.patience_s;
    if control::await_end(path, Duration::from_secs(patience_s))? {
        println!("the guest has ended, and its vmm with it");
        return Ok(());
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
    println!("power button pressed; the guest shuts down if it listens");
    Ok(())
}

/// The status for a person.
fn render(status: &NodeStatus) -> String {
    let mut text = match &status.role {
        RoleStatus::Replicated(status) => replicated(status),
        RoleStatus::Unprotected(role) => unprotected(role, status.uptime_s),
    };
    let guest = &status.guest;
    if guest.restarts > 0 {
        text += &line("restarts", &guest.restarts.to_string());
    }
    if let Some(alarm) = &guest.alarm {
        text += &line("guest", alarm);
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

fn replicated(status: &Status) -> String {
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
    line("output", output(&status.output));
    if status.side == Side::Primary && status.pause_us.count > 0 {
        line("pause", times(&status.pause_us));
        line("ack", times(&status.ack_us));
        let pages = &status.dirty_pages;
        line(
            "dirty",
            format!(
                "p50 {} pages, p99 {}, max {}",
                pages.p50, pages.p99, pages.max
            ),
        );
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
    for (name, disk) in super::disk_status::lines(status) {
        line(&name, disk);
    }
    if let Some(failover) = &status.failover {
        let repair = failover.repair_ms.map_or_else(
            || "not protected again yet".into(),
            |ms| format!("repair {ms:.1} ms"),
        );
        line(
            "failover",
            format!(
                "at epoch {}: reaction {:.1} ms, recovery {:.1} ms, outage {:.1} ms, {repair} ({})",
                failover.epoch,
                failover.reaction_ms,
                failover.recovery_ms,
                failover.outage_ms,
                failover.cause
            ),
        );
    }
    if let Some(alarm) = &status.alarm {
        line("alarm", alarm.clone());
    }
    text
}

fn unprotected(status: &UnprotectedStatus, uptime_s: u64) -> String {
    let mut text = format!("{} on {}: unprotected run\n", status.vm, status.node);
    text += &line("state", &format!("running for {uptime_s} s"));
    text += &line("output", &output(&status.output));
    for (name, disk) in super::disk_status::run_lines(&status.disks) {
        text += &line(&name, &disk);
    }
    text
}

fn line(name: &str, value: &str) -> String {
    format!("  {name:<10}{value}\n")
}

fn output(counts: &OutputCounts) -> String {
    format!(
        "{:.1} MiB held, {} frames sent, {} dropped",
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
