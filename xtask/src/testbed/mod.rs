//! `cargo xtask testbed`: real Linux guests on real KVM with nested paging, in hosts that QEMU emulates.
//!
//! ```text
//!   boot.rs       one host whose init boots guests: no root needed
//!   linux.rs      the same with the Linux guest image: a disk, both kernels
//!   sandbox.rs    namespaces around everything below
//!   lab.rs        two hosts (host.rs), networks (network.rs), storage (storage.rs), vmm in the hosts (vmm.rs)
//!   guest.rs      guests; client.rs, shell.rs, speakers.rs: what one sees of them from outside
//!   scenarios/    what is tried; report.rs: what it cost
//! ```
//!
//! Nothing but Debian packages of programs is installed; the kernel and the NFS server are unpacked below
//! `target/testbed`, where logs are kept too. What must not be done here: conclude anything from absolute
//! times. Everything in there is some 30 times slower than on a real machine.

mod boot;
mod client;
mod guest;
mod host;
mod initramfs;
mod kernel;
mod lab;
mod linux;
mod machine;
mod network;
mod packages;
mod report;
mod sandbox;
mod scenarios;
mod shell;
mod speakers;
mod storage;
mod vmm;
mod vmm_binary;
mod wait;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

pub(crate) use boot::boot;
pub(crate) use kernel::Kernel;
use lab::Lab;
pub(crate) use linux::linux;
use scenarios::{ALL, Scenario};
use wait::say;

use crate::root;

/// Prints the scenarios.
pub(crate) fn list() {
    for scenario in ALL {
        println!("{:<20} {}", scenario.name, scenario.about);
    }
}

/// Runs scenarios by name, `all` of them, with `--json` for the figures as JSON.
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let names: Vec<&str> = (arguments.iter().copied())
        .filter(|argument| *argument != "--json")
        .collect();
    let chosen = choose(&names)?;
    let directory = directory()?;
    if !sandbox::is_inside() {
        sandbox::check(&packages::PROGRAMS)?;
        Kernel::provide(&directory)?;
        storage::provide(&directory)?;
        vmm_binary::build(&directory)?;
        let code = sandbox::enter(&[&["run"], arguments].concat())?;
        std::process::exit(code);
    }
    let mut lab = Lab::new(&directory, &directory.join("vmm"))?;
    let mut verdicts = Vec::new();
    for scenario in chosen {
        let begin = Instant::now();
        say(format_args!("=== {}: {}", scenario.name, scenario.about));
        let outcome = lab
            .begin(scenario.name)
            .and_then(|()| (scenario.act)(&mut lab));
        lab.end()?;
        let verdict = match outcome {
            Ok(()) => Ok(begin.elapsed().as_secs_f64()),
            Err(error) => Err(format!("{error:#}")),
        };
        match &verdict {
            Ok(seconds) => say(format_args!("=== pass {} in {seconds:.0} s", scenario.name)),
            Err(why) => say(format_args!("=== FAIL {}: {why}", scenario.name)),
        }
        verdicts.push((scenario.name.to_owned(), verdict));
    }
    if arguments.contains(&"--json") {
        println!("{}", report::json(&lab.measures, &verdicts));
    } else {
        report::print_table(&lab.measures);
    }
    let failed: Vec<&str> = (verdicts.iter())
        .filter(|(_, verdict)| verdict.is_err())
        .map(|(name, _)| name.as_str())
        .collect();
    ensure!(
        failed.is_empty(),
        "failed: {}; logs are in {}",
        failed.join(", "),
        directory.display()
    );
    Ok(())
}

fn choose(names: &[&str]) -> Result<Vec<&'static Scenario>> {
    if names.is_empty() {
        bail!("which scenario? `cargo xtask testbed list` shows them; `all` runs all");
    }
    let mut chosen = Vec::new();
    for name in names {
        if *name == "all" {
            chosen.extend(ALL);
            continue;
        }
        let found = ALL.iter().find(|scenario| scenario.name == *name);
        chosen.push(found.with_context(|| {
            format!("no scenario {name:?}; `cargo xtask testbed list` shows them")
        })?);
    }
    Ok(chosen)
}

/// Where everything of the testbed is kept.
fn directory() -> Result<PathBuf> {
    let directory = root().join("target/testbed");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
