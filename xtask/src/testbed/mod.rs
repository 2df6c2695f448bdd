//! `cargo xtask testbed`: real Linux guests on real KVM with nested paging, in hosts that QEMU emulates.
//!
//! ```text
//!   boot.rs       one host whose init boots guests: no root needed
//!   linux.rs      the same with the Linux guest image: a disk, both kernels
//!   sandbox.rs    namespaces around everything below
//!   lab.rs        two hosts (host.rs), networks (network.rs), storage (storage.rs), vmm in the hosts (vmm.rs)
//!   guest.rs      guests; client.rs, shell.rs, speakers.rs: what one sees of them from outside; native.rs: what
//!                 their programs do without a guest
//!   scenarios/    what is tried; report.rs: what it cost
//! ```
//!
//! Kernel and NFS server are Debian's (`crate::debian`), unpacked below `target/testbed`, where logs are kept
//! too. What must not be done here: conclude anything from absolute times. Everything in there is some 30 times
//! slower than on a real machine.

mod boot;
mod client;
mod guest;
mod host;
mod lab;
mod linux;
mod load;
mod machine;
mod native;
mod network;
mod options;
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

use anyhow::{Result, ensure};

pub(crate) use boot::boot;
use lab::Lab;
pub(crate) use linux::linux;
use options::Options;
use scenarios::{ALL, Scenario};
use wait::say;

use crate::debian::{Flavor, Kernel, provide_busybox};
use crate::{guest_image, root};

/// Programs that one host needs, and the Debian package each is in.
const ONE_HOST: [(&str, &str); 5] = [
    ("setpriv", "util-linux"),
    ("cpio", "cpio"),
    ("strip", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
];
/// What a cluster needs besides.
const CLUSTER: [(&str, &str); 5] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("unshare", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    // Where the NFS server looks transports up.
    ("/etc/netconfig", "libtirpc-common"),
];

/// Prints the scenarios.
pub(crate) fn list() {
    for scenario in ALL {
        println!("{:<20} {}", scenario.name, scenario.about);
    }
}

/// Runs scenarios; see [`Options`].
pub(crate) fn run(arguments: &[&str]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let directory = directory()?;
    if !sandbox::is_inside() {
        // Kept to the end of this process, and with it of what is inside.
        let _turn = sandbox::take_turn(&directory)?;
        sandbox::check(&[&ONE_HOST[..], &CLUSTER].concat())?;
        machine::provide()?;
        Kernel::provide(&directory, Flavor::Cloud)?;
        provide_busybox()?;
        storage::provide(&directory)?;
        vmm_binary::build(&directory)?;
        // Needs the network, which is not there inside.
        if options
            .scenarios
            .iter()
            .any(|scenario| scenario.needs_image)
        {
            guest_image::image(Flavor::Cloud)?;
        }
        // The same numbers inside.
        let seed = options.seed().to_string();
        let code = sandbox::enter(&[&["run"], arguments, &["--seed", &seed]].concat())?;
        std::process::exit(code);
    }
    say(format_args!("seed {}", options.seed()));
    let (scenarios, as_json) = (options.scenarios.clone(), options.json);
    let mut lab = Lab::new(&directory, options)?;
    let mut verdicts = Vec::new();
    for scenario in scenarios {
        let verdict = judge(&mut lab, scenario)?;
        verdicts.push((scenario.name.to_owned(), verdict));
    }
    if as_json {
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
    say(format_args!("all {} passed", verdicts.len()));
    Ok(())
}

/// Runs one scenario: how many seconds it took, or what went wrong.
fn judge(lab: &mut Lab, scenario: &Scenario) -> Result<Result<f64, String>> {
    let begin = Instant::now();
    say(format_args!("=== {}: {}", scenario.name, scenario.about));
    let outcome = lab.begin(scenario.name).and_then(|()| (scenario.act)(lab));
    let verdict = match outcome {
        Ok(()) => Ok(begin.elapsed().as_secs_f64()),
        Err(error) => {
            let mut why = vec![format!("{error:#}")];
            why.extend(lab.guest_alarms());
            Err(why.join("; "))
        }
    };
    lab.end()?;
    match &verdict {
        Ok(seconds) => say(format_args!("=== pass {} in {seconds:.0} s", scenario.name)),
        Err(why) => say(format_args!("=== FAIL {}: {why}", scenario.name)),
    }
    Ok(verdict)
}

/// Where everything of the testbed is kept.
fn directory() -> Result<PathBuf> {
    let directory = root().join("target/testbed");
    std::fs::create_dir_all(&directory)?;
    Ok(directory)
}
