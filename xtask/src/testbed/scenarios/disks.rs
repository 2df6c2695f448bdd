//! What the Linux guest was told is on disk is there after a failover, whichever way the disk is replicated.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::super::guest::{self, Guest, Mode};
use super::super::load::{self, Load, Loads};
use super::super::native;
use super::super::network::Side;
use super::super::two_hosts::Testbed;
use super::super::wait::{say, until};
use super::faults::{Fault, repair, strike};
use crate::debian::text_of;

/// Acknowledged writes of each load before something happens, and after it.
const WRITES: u64 = 30;
/// Longest that a compile may take. It took 180 s with a failover in it, and over 400 s with the short epochs.
const COMPILE: Duration = Duration::from_secs(900);
/// Object files, of 7, after which a compile is disturbed.
const OBJECTS: u32 = 3;

/// Redis and fsynced records while the host with the guest fails, there and back; then the file system.
pub(super) fn databases(testbed: &mut Testbed, mode: Mode, vcpus: u8) -> Result<()> {
    testbed.protect(&guest::linux(mode)?, vcpus)?;
    let loads = Loads::start()?;
    for side in Side::BOTH {
        loads.await_more(WRITES)?;
        fail(testbed, &loads, Fault::PowerFailure, side)?;
    }
    let records = loads.verify()?;
    check_image(testbed, Side::A, records)
}

/// The same with faults of all kinds at random moments, from host to host and back.
pub(super) fn random(testbed: &mut Testbed, mode: Mode) -> Result<()> {
    testbed.protect(&guest::linux(mode)?, 2)?;
    let loads = Loads::start()?;
    let mut side = Side::A;
    let times = testbed.luck.times;
    for time in 1..=times {
        let fault = Fault::random(&mut testbed.luck);
        say(format_args!("--- {time} of {times}: {}", fault.name()));
        loads.await_more(testbed.luck.below(2 * WRITES))?;
        // Writes are acknowledged at the ends of epochs; faults come at any time.
        std::thread::sleep(Duration::from_millis(
            testbed.luck.below(2 * guest::EPOCH_MS),
        ));
        fail(testbed, &loads, fault, side)?;
        side = side.other();
    }
    say(format_args!("{times} failovers at random moments"));
    let records = loads.verify()?;
    check_image(testbed, side, records)
}

/// The host with the guest fails; the other one takes over, serves on, and gets a standby again.
fn fail(testbed: &mut Testbed, loads: &Loads, fault: Fault, side: Side) -> Result<()> {
    let failover = strike(testbed, fault, side)?;
    loads.await_more(WRITES)?;
    let what = format!("{} of {}", fault.name(), side.name());
    testbed.measure(what, failover, None);
    repair(testbed, side)
}

/// A primary that hangs and goes on later has written nothing more to the disk.
pub(super) fn freeze(testbed: &mut Testbed, mode: Mode) -> Result<()> {
    testbed.protect(&guest::linux(mode)?, 2)?;
    let fsync = Load::fsync()?;
    fsync.await_more(WRITES)?;
    let failover = strike(testbed, Fault::Freeze, Side::A)?;
    fsync.await_more(WRITES)?;
    testbed.measure("freeze of host-a", failover, None);
    let records = fsync.stop()?;
    load::verify_fsync(records)?;
    check_image(testbed, Side::B, records)
}

/// A compile goes on over the failover and makes what an undisturbed one makes, on this machine itself.
pub(super) fn compile(testbed: &mut Testbed, mode: Mode, vcpus: u8) -> Result<()> {
    let guest = computing(mode)?;
    testbed.protect(&guest, vcpus)?;
    let undisturbed = natively(testbed, &guest)?;
    let command = format!("compile 1 {vcpus}");
    let disturbed = std::thread::spawn(move || guest::shell(&command, COMPILE));
    until("some object files", COMPILE, || {
        ensure!(!disturbed.is_finished(), "the compile has ended already");
        let count = guest::shell(
            "ls /data/compile 2> /dev/null | grep -c '\\.o$' || true",
            COMPILE,
        )?;
        Ok((count.trim().parse::<u32>()? >= OBJECTS).then_some(()))
    })?;
    let failover = strike(testbed, Fault::PowerFailure, Side::A)?;
    ensure!(!disturbed.is_finished(), "the compile ended before it");
    let Ok(said) = disturbed.join() else {
        bail!("the compiling client panicked");
    };
    let disturbed = objects(&said?)?;
    ensure!(
        disturbed == undisturbed,
        "the guest compiled {disturbed}, undisturbed it is {undisturbed}"
    );
    say("the same object files");
    testbed.measure("power failure while compiling", failover, None);
    Ok(())
}

/// A protected guest to which nothing happens compiles over and over: it compiles right, and does not crash.
pub(super) fn soak(testbed: &mut Testbed, mode: Mode) -> Result<()> {
    let guest = computing(mode)?;
    testbed.protect(&guest, 2)?;
    let right = natively(testbed, &guest)?;
    let times = testbed.luck.times;
    for time in 1..=times {
        let compile = std::thread::spawn(|| guest::shell("compile 1 2", COMPILE));
        until("a compile", COMPILE, || {
            let alarms = testbed.guest_alarms();
            ensure!(alarms.is_empty(), "{}", alarms.join("; "));
            Ok(compile.is_finished().then_some(()))
        })?;
        let Ok(said) = compile.join() else {
            bail!("the compiling client panicked");
        };
        let compiled = objects(&said?)?;
        ensure!(
            compiled == right,
            "the guest compiled {compiled}, natively it is {right}"
        );
        let status = testbed.status(Side::A)?.unwrap_or_default();
        say(format_args!(
            "{time} of {times}: the same object files, after {} epochs",
            status["epochs"]
        ));
    }
    Ok(())
}

/// The Linux guest with epochs for one that computes.
fn computing(mode: Mode) -> Result<Guest> {
    Ok(Guest {
        epoch_ms: guest::LONG_EPOCH_MS,
        ..guest::linux(mode)?
    })
}

/// What the compile makes on this machine itself.
fn natively(testbed: &Testbed, guest: &Guest) -> Result<String> {
    let root = guest.drives.first().context("no drive")?;
    let said = native::shell(
        &root.image,
        &testbed.directory.join("native"),
        "compile 1 2",
    )?;
    let hash = objects(&said)?;
    say(format_args!("undisturbed, and natively: {hash}"));
    Ok(hash)
}

/// The hash of all object files.
fn objects(said: &str) -> Result<String> {
    let line = said.lines().find(|line| line.starts_with("compile: ok "));
    let word = line.and_then(|line| line.split(' ').find(|word| word.starts_with("sha256=")));
    Ok(word
        .with_context(|| format!("compile said {said}"))?
        .to_owned())
}

/// Looks at the image on this host as it is after a power failure of both: the file system must be clean once
/// its journal is replayed, and every record must be there.
fn check_image(testbed: &mut Testbed, side: Side, records: u64) -> Result<()> {
    testbed.power_off(side.other())?;
    let image = testbed.take_image(side, "root")?;
    e2fsck("-p", &image, &[0, 1])?;
    e2fsck("-fn", &image, &[0])?;
    let found = image.with_extension("fsync");
    if found.exists() {
        std::fs::remove_dir_all(&found)?;
    }
    std::fs::create_dir_all(&found)?;
    let dump = format!("rdump /data/fsync {}", text_of(&found)?);
    Command::new("debugfs")
        .arg("-R")
        .arg(dump)
        .arg(&image)
        .output()?;
    understudy_guest_tool::fsync::check(&found.join("fsync"), records)?;
    say(format_args!(
        "the file system is clean, and {records} records are in it"
    ));
    std::fs::remove_file(&image)?;
    Ok(())
}

fn e2fsck(flags: &str, image: &Path, fine: &[i32]) -> Result<()> {
    let output = Command::new("e2fsck").arg(flags).arg(image).output()?;
    ensure!(
        output
            .status
            .code()
            .is_some_and(|code| fine.contains(&code)),
        "e2fsck {flags} {}: {}: {}",
        image.display(),
        output.status,
        String::from_utf8_lossy(&output.stdout)
    );
    Ok(())
}
