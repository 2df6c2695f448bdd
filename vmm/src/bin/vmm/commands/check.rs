//! `vmm check`: what this host can and cannot do, and what to do about it.

use std::path::Path;

use anyhow::{Result, bail};
use serde::Serialize;
use understudy_replication::disk::DiskLimits;
use understudy_vmm::kvm::System;
use understudy_vmm::vcpu::{CpuModel, CpuTemplate};

use crate::args::CheckArgs;

#[derive(Debug, Serialize)]
struct Finding {
    name: String,
    have: bool,
    required: bool,
    meaning: String,
    /// What to do, or what happens instead; empty if there is nothing to do.
    advice: String,
}

pub(crate) fn check(arguments: &CheckArgs) -> Result<()> {
    let mut findings = kvm();
    findings.extend(cpu_templates());
    findings.push(tap());
    findings.push(memory());
    findings.push(disks());
    for finding in findings.iter_mut().filter(|finding| finding.have) {
        finding.advice.clear();
    }
    let fit = findings
        .iter()
        .all(|finding| finding.have || !finding.required);
    if arguments.json {
        println!(
            "{}",
            serde_json::json!({ "fit": fit, "findings": findings })
        );
    } else {
        for finding in &findings {
            let mark = match (finding.have, finding.required) {
                (true, _) => "yes",
                (false, true) => "NO",
                (false, false) => "no",
            };
            println!("{mark:>4}  {}: {}", finding.name, finding.meaning);
            if !finding.have {
                println!("      {}", finding.advice);
            }
        }
    }
    if !fit {
        bail!("this host cannot run guests; see the lines marked NO");
    }
    if !arguments.json {
        println!("\nThis host can run and protect guests.");
    }
    Ok(())
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
    system
        .capabilities()
        .list()
        .iter()
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
    CpuTemplate::ALL
        .into_iter()
        .filter(|template| *template != CpuTemplate::Host)
        .map(|template| {
            let cut = template.cut(&host);
            Finding {
                name: format!("--cpu-template {template}"),
                have: cut.is_ok(),
                required: false,
                meaning: "guests can go between unlike hosts that have it too".into(),
                advice: cut.map_or_else(|error| error.to_string(), |_| String::new()),
            }
        })
        .collect()
}

fn tap() -> Finding {
    let tun = std::fs::OpenOptions::new()
        .read(true)
        .write(true)
        .open("/dev/net/tun");
    Finding {
        name: "/dev/net/tun".into(),
        have: tun.is_ok(),
        required: false,
        meaning: "tap devices for guests' networks".into(),
        advice: match tun {
            Ok(_) => String::new(),
            Err(error) if Path::new("/dev/net/tun").exists() => {
                format!(
                    "{error}; as root: `ip tuntap add NAME mode tap user YOU`; or use socket=PATH with passt"
                )
            }
            Err(_) => "`modprobe tun`; or use socket=PATH with passt".into(),
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
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available_mib = text
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))
        .and_then(|rest| rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok())
        .map_or(0, |kib| kib / 1024);
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
