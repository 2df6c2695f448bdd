//! `vmm status`, `vmm failover`, `vmm stop`, `vmm power-button`: talk to a running `vmm` over its control socket.

use std::io::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use understudy_replication::runtime::{Percentiles, Role, Status};
use understudy_vmm::control::{self, Command, Report};

use crate::args::{ControlArgs, StatusArgs};

pub(crate) fn status(arguments: &StatusArgs) -> Result<()> {
    loop {
        let value = control::ask(&arguments.control.control, Command::Status)?;
        // Who reads this may go away, for example `head`: an error, no panic.
        let mut out = std::io::stdout().lock();
        if arguments.json {
            writeln!(out, "{value}")?;
        } else {
            let report =
                serde_json::from_value(value).context("the running vmm is of another version")?;
            write!(out, "{}", render(&report))?;
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

pub(crate) fn stop(arguments: &ControlArgs) -> Result<()> {
    control::ask(&arguments.control, Command::Stop)?;
    println!("stop requested");
    Ok(())
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
    let mut line = |name: &str, value: String| text.push_str(&format!("  {name:<10}{value}\n"));
    line(
        "state",
        format!(
            "{}, generation {}, epoch {}",
            status.phase, status.generation, status.epoch
        ),
    );
    line("epochs", status.epochs.to_string());
    let output = &status.output;
    line(
        "output",
        format!(
            "{:.1} MiB held, {} frames sent, {} dropped",
            mib(output.held_bytes),
            output.frames_sent,
            output.frames_dropped
        ),
    );
    if status.role == Role::Primary && status.pause_us.count > 0 {
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
    let guest = &report.guest;
    if guest.restarts > 0 {
        line("restarts", guest.restarts.to_string());
    }
    if let Some(alarm) = &guest.alarm {
        line("guest", alarm.clone());
    }
    text
}

fn headline(status: &Status) -> String {
    let peer = status.peer.as_deref().unwrap_or("nobody");
    match (status.role, status.protected) {
        (Role::Primary, true) => format!("primary, protected by {peer}"),
        (Role::Primary, false) => "primary, NOT protected".into(),
        (Role::Standby, true) => format!("standby, in sync with {peer}"),
        (Role::Standby, false) => "standby, not in sync".into(),
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
