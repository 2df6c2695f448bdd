//! `cargo xtask testbed`: real Linux guests on real KVM with nested paging, in hosts that QEMU emulates.
//!
//! ```text
//!   one_host.rs   one host (qemu.rs) that runs guests by itself; no root needed
//!   boot.rs       a kernel and an initramfs in it; linux.rs: the Linux guest image, with a disk and both kernels
//!   init/         what hosts and guests do after their boot: begin.sh, then each a script of its own
//!   sandbox.rs    namespaces around everything below
//!   two_hosts.rs  two hosts (host.rs), networks (network.rs), storage (storage.rs), vmm in the hosts (vmm.rs)
//!   guest.rs      guests; client.rs, shell.rs, speakers.rs, announcements.rs: what one sees of them from outside; native.rs: what
//!                 their programs do without a guest
//!   scenarios/    what is tried; report.rs: what it cost
//! ```
//!
//! Kernel and NFS server are Debian's (`crate::debian`), unpacked below `target/testbed`, where logs are kept
//! too. What must not be done here: conclude anything from absolute times. Everything in there is some 30 times
//! slower than on a real machine.

mod announcements;
mod boot;
mod chrony;
mod client;
mod guest;
mod host;
mod init;
mod linux;
mod load;
mod luck;
mod native;
mod network;
mod one_host;
mod options;
mod prepare;
mod qemu;
mod report;
mod sandbox;
mod scenarios;
mod shell;
mod speakers;
mod storage;
mod two_hosts;
mod vmm;
mod vmm_binary;
mod wait;

use std::time::Instant;

use anyhow::{Result, ensure};
use clap::Subcommand;

use luck::Luck;
use options::{Options, RunArgs};
use scenarios::{ALL, Scenario};
use two_hosts::Testbed;
use wait::say;

use crate::debian::Flavor;
use crate::guest_image;

/// What can be done with a testbed.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Boot Linux guests on real KVM in an emulated host.
    ///
    /// Needs Debian 12. Installs the packages it needs when run as root, names them otherwise; downloads
    /// QEMU and a kernel once.
    Boot,
    /// Boot the Linux guest image in an emulated host: root on a disk, both of Debian's kernels.
    Linux,
    /// List the scenarios of the two-host testbed.
    List,
    /// Run scenarios on two emulated hosts: faults, and what clients of the guest see of them.
    ///
    /// Needs Debian and root; installs the packages it needs. Logs stay in `target/testbed`.
    Run(RunArgs),
}

/// Does it.
pub(crate) fn command(command: Command) -> Result<()> {
    match command {
        Command::Boot => boot::boot(),
        Command::Linux => linux::linux(),
        Command::List => {
            for scenario in ALL {
                println!("{:<20} {}", scenario.name, scenario.about);
            }
            Ok(())
        }
        Command::Run(arguments) => run(arguments.into_options()?),
    }
}

/// Runs scenarios; see [`Options`].
fn run(options: Options) -> Result<()> {
    let directory = prepare::directory()?;
    if !sandbox::is_inside() {
        // Kept to the end of this process, and with it of what is inside.
        let _turn = sandbox::take_turn(&directory)?;
        prepare::two_hosts()?;
        // Needs the network, which is not there inside.
        if options
            .scenarios
            .iter()
            .any(|scenario| scenario.needs_image)
        {
            guest_image::image(Flavor::Cloud)?;
        }
        let code = sandbox::enter(&options.arguments())?;
        std::process::exit(code);
    }
    say(format_args!("seed {}", options.seed));
    let (scenarios, as_json) = (options.scenarios.clone(), options.json);
    let mut testbed = Testbed::new(&directory, Luck::new(options.times, options.seed))?;
    let mut verdicts = Vec::new();
    for scenario in scenarios {
        let verdict = judge(&mut testbed, scenario)?;
        verdicts.push((scenario.name.to_owned(), verdict));
    }
    if as_json {
        println!("{}", report::json(&testbed.measures, &verdicts));
    } else {
        report::print_table(&testbed.measures);
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
    say(format_args!("all {} passed", verdicts.len()));
    Ok(())
}

/// Runs one scenario: how many seconds it took, or what went wrong.
fn judge(testbed: &mut Testbed, scenario: &Scenario) -> Result<Result<f64, String>> {
    let begin = Instant::now();
    say(format_args!("=== {}: {}", scenario.name, scenario.about));
    let outcome = testbed
        .begin(scenario.name)
        .and_then(|()| (scenario.act)(testbed));
    let verdict = match outcome {
        Ok(()) => Ok(begin.elapsed().as_secs_f64()),
        Err(error) => {
            let mut why = vec![format!("{error:#}")];
            why.extend(testbed.guest_alarms());
            Err(why.join("; "))
        }
    };
    testbed.end()?;
    match &verdict {
        Ok(seconds) => say(format_args!("=== pass {} in {seconds:.0} s", scenario.name)),
        Err(why) => say(format_args!("=== FAIL {}: {why}", scenario.name)),
    }
    Ok(verdict)
}
