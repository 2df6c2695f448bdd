//! What this host can and cannot do, and what to do about it.
//!
//! What must not be done here: print, or name flags.

mod endurance;

use std::fs::OpenOptions;
use std::io::ErrorKind;
use std::path::Path;

use serde::Serialize;
use understudy_replication::disk::DiskLimits;

use crate::kvm::{KvmError, System};
use crate::memory::available_mib;
use crate::vcpu::{CpuModel, CpuTemplate};

pub(crate) use endurance::field as process_field;
pub use endurance::{Lack, endure, keep_memory, raise_priority};

/// One thing that a host has or lacks.
#[derive(Debug, Serialize)]
pub struct Finding {
    /// What it is called.
    pub name: String,
    /// Whether this host has it.
    pub have: bool,
    /// Whether no guest runs without it.
    pub required: bool,
    /// What it is for.
    pub meaning: String,
    /// What to do, or what happens instead; empty if there is nothing to do.
    pub advice: String,
}

/// Looks at all that guests may need.
#[must_use]
pub fn findings() -> Vec<Finding> {
    let mut findings = kvm();
    findings.extend(cpu_templates());
    findings.extend([tap(), memory(), disks()]);
    findings.extend(endurance::findings());
    for finding in findings.iter_mut().filter(|finding| finding.have) {
        finding.advice.clear();
    }
    findings
}

/// Makes sure that guests can run here at all.
///
/// # Errors
/// What is missing.
pub fn check_kvm() -> Result<(), KvmError> {
    System::open().map(drop)
}

fn kvm() -> Vec<Finding> {
    let system = match System::open_unchecked() {
        Ok(system) => system,
        Err(error) => {
            return vec![Finding {
                name: "/dev/kvm".into(),
                have: false,
                required: true,
                meaning: "hardware virtualisation".into(),
                advice: error.to_string(),
            }];
        }
    };
    let capabilities = system.capabilities().list().iter();
    capabilities
        .map(|capability| Finding {
            name: capability.name.into(),
            have: capability.have,
            required: capability.required,
            meaning: capability.meaning.into(),
            advice: capability.advice.into(),
        })
        .collect()
}

/// Which CPU templates guests can be booted with here. Without KVM there is nothing to say.
fn cpu_templates() -> Vec<Finding> {
    let Ok(host) = System::open_unchecked().and_then(|system| CpuModel::of_host(&system)) else {
        return Vec::new();
    };
    let templates = CpuTemplate::ALL.into_iter();
    templates
        .filter(|template| *template != CpuTemplate::Host)
        .map(|template| {
            let cut = template.cut(&host);
            Finding {
                name: format!("CPU template {template}"),
                have: cut.is_ok(),
                required: false,
                meaning: "guests can go between unlike hosts that have it too".into(),
                advice: cut.map_or_else(|error| error.to_string(), |_| String::new()),
            }
        })
        .collect()
}

fn tap() -> Finding {
    let path = Path::new("/dev/net/tun");
    let tun = OpenOptions::new().read(true).write(true).open(path);
    Finding {
        name: path.display().to_string(),
        have: tun.is_ok(),
        required: false,
        meaning: "tap devices for guests' networks".into(),
        advice: match tun {
            Ok(_) => String::new(),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => format!(
                "{error}; as root: `chmod 666 {}`, then `ip tuntap add NAME mode tap user YOU`; or use the socket of \
                 a passt",
                path.display()
            ),
            Err(error) => format!("{error}; `modprobe tun`; or use the socket of a passt"),
        },
    }
}

/// What disks of protected guests will need: nothing of it can be looked at before there are any.
fn disks() -> Finding {
    let journal_mib = DiskLimits::default().journal_bytes_max >> 20;
    Finding {
        name: "disks".into(),
        have: true,
        required: false,
        meaning: format!(
            "replicated ones need an image of the same size on each host, and up to {journal_mib} MiB for the \
             standby's journal; shared ones one image on storage whose locks reach both hosts, as NFSv4's do"
        ),
        advice: String::new(),
    }
}

fn memory() -> Finding {
    let available_mib = available_mib().unwrap_or(0);
    // A small guest, and as much again for caches of pages and for staging.
    let needed_mib = 512;
    Finding {
        name: "memory".into(),
        have: available_mib >= needed_mib,
        required: false,
        meaning: format!("{available_mib} MiB available for guests"),
        advice: format!("a protected guest of 256 MiB needs up to {needed_mib} MiB"),
    }
}
