//! `vmm status`, `vmm failover`, `vmm stop`, `vmm power-button`: talk to a running `vmm` over its control socket.

use std::io::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use understudy_replication::output::OutputCounts;
use understudy_replication::runtime::{Percentiles, Side, Status};
use understudy_vmm::control::{self, Command, ControlError, GuestReport, Report, RunReport};

use crate::args::{ControlArgs, StatusArgs, StopArgs};

/// How often it is looked whether a guest has shut itself down.
const LOOK: Duration = Duration::from_millis(100);

pub(crate) fn status(arguments: &StatusArgs) -> Result<()> {
    loop {
        let value = control::ask(&arguments.control.control, Command::Status)?;
        // Who reads this may go away, for example `head`: an error, no panic.
        let mut out = std::io::stdout().lock();
        if arguments.json {
            writeln!(out, "{value}")?;
        } else {
            let text = match value["role"] == "unprotected" {
                true => serde_json::from_value(value).map(|report| render_run(&report)),
                false => serde_json::from_value(value).map(|report| render(&report)),
            };
            write!(
                out,
                "{}",
                text.context("the running vmm is of another version")?
            )?;
        }
        if !arguments.watch {
            return Ok(());
        }
        std::thread::sleep(Duration::from_secs(1));
    }
}

pub(crate) fn failover(arguments: &ControlArgs) -> Result<()> {
    control::ask(&arguments.control, Command::Failover)?;
    println!("promotion requested; `vmm status` shows when it has happened");
    Ok(())
}

pub(crate) fn stop(arguments: &StopArgs) -> Result<()> {
    if arguments.graceful {
        return stop_gracefully(arguments);
    }
    control::ask(&arguments.control.control, Command::Stop)?;
    println!("stop requested");
    Ok(())
}

fn stop_gracefully(arguments: &StopArgs) -> Result<()> {
    let path = &arguments.control.control;
    control::ask(path, Command::PowerButton)?;
    println!("power button pressed; waiting for the guest to shut down");
    let deadline = Instant::now() + Duration::from_secs(arguments.patience_s);
    loop {
        match control::ask(path, Command::Status) {
            // Nobody serves the socket any more, or not to the end of the answer.
            Err(ControlError::System { .. } | ControlError::Malformed { .. }) => {
                println!("the guest has ended, and its vmm with it");
                return Ok(());
            }
            answer => {
                let status = answer?;
                let awaits = &status["ending"];
                ensure!(
                    awaits.is_null() || Instant::now() < deadline,
                    "the guest has ended, but what it said last has not left within {} s: it waits for {}. It goes on \
                     waiting; to give that output up, `vmm stop` twice",
                    arguments.patience_s,
                    awaits.as_str().unwrap_or("something")
                );
            }
        }
        ensure!(
            Instant::now() < deadline,
            "the guest has not shut down within {} s, and runs on: it may not listen to its power button \
             (Linux: module `button`, and acpid or systemd-logind); `vmm stop` without --graceful ends it at once",
            arguments.patience_s
        );
        std::thread::sleep(LOOK);
    }
}

pub(crate) fn power_button(arguments: &ControlArgs) -> Result<()> {
    control::ask(&arguments.control, Command::PowerButton)?;
    println!("power button pressed; the guest shuts down if it listens");
    Ok(())
}

/// The status for a person.
fn render(report: &Report) -> String {
    let status = &report.status;
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
    text + &guest_lines(&report.guest)
}

/// The status of an unprotected guest for a person.
fn render_run(report: &RunReport) -> String {
    let mut text = format!("{} on {}: unprotected run\n", report.vm, report.node);
    text += &line("state", &format!("running for {} s", report.uptime_s));
    text += &line("output", &output(&report.output));
    for (name, disk) in super::disk_status::run_lines(&report.disks) {
        text += &line(&name, &disk);
    }
    text + &guest_lines(&report.guest)
}

fn guest_lines(guest: &GuestReport) -> String {
    let mut text = String::new();
    if guest.restarts > 0 {
        text += &line("restarts", &guest.restarts.to_string());
    }
    if let Some(alarm) = &guest.alarm {
        text += &line("guest", alarm);
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
