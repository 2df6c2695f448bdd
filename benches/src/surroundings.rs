//! What results depend on besides the program: the machine, its kernel, and who else was busy.

use std::fs;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use understudy_vmm::kvm;
use understudy_vmm::vcpu::fault_cost;

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Surroundings {
    /// Days since 1970 would do; people want a date.
    pub(crate) date: String,
    /// Of the program.
    pub(crate) revision: String,
    pub(crate) processor: String,
    pub(crate) cores: usize,
    pub(crate) memory_gib: u64,
    pub(crate) kernel: String,
    /// The modules by which KVM runs guests.
    pub(crate) kvm: Vec<String>,
    /// What the first write to a protected page costs a guest, in microseconds.
    pub(crate) fault_us: f64,
    /// Processes that could run, over a minute, at the beginning and at the end.
    pub(crate) load: [f64; 2],
}

impl Surroundings {
    pub(crate) fn now(revision: &str) -> Result<Self> {
        let cpuinfo = read("/proc/cpuinfo")?;
        let field = |name: &str| {
            let mut lines = cpuinfo.lines().filter(|line| line.starts_with(name));
            let value = lines.next().and_then(|line| line.split_once(':'));
            value
                .map_or("unknown", |(_, value)| value.trim())
                .to_owned()
        };
        let memory = read("/proc/meminfo")?;
        let kib = memory.split_whitespace().nth(1);
        let kib: u64 = kib.and_then(|kib| kib.parse().ok()).unwrap_or(0);
        let mut kvm_modules: Vec<String> = fs::read_dir("/sys/module")
            .into_iter()
            .flatten()
            .flatten()
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .filter(|name| name.starts_with("kvm_"))
            .collect();
        kvm_modules.sort();
        let system = kvm::System::open()?;
        Ok(Self {
            date: today()?,
            revision: revision.into(),
            processor: field("model name"),
            cores: std::thread::available_parallelism()?.get(),
            memory_gib: (kib + (1 << 19)) >> 20,
            kernel: read("/proc/sys/kernel/osrelease")?.trim().into(),
            kvm: kvm_modules,
            fault_us: fault_cost(&system).as_secs_f64() * 1e6,
            load: [load(); 2],
        })
    }

    /// The measurement is over.
    pub(crate) fn ends(&mut self) {
        self.load[1] = load();
    }

    /// As a sentence.
    pub(crate) fn describe(&self) -> String {
        format!(
            "{} on {}, {} cores, {} GiB, Linux {}, {}; a fault costs the guest {:.1} µs; load {:.1} before and {:.1} after.",
            self.revision,
            self.processor,
            self.cores,
            self.memory_gib,
            self.kernel,
            self.kvm.join(" and "),
            self.fault_us,
            self.load[0],
            self.load[1]
        )
    }
}

fn read(path: &str) -> Result<String> {
    fs::read_to_string(path).with_context(|| format!("cannot read {path}"))
}

fn load() -> f64 {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let first = text.split(' ').next().unwrap_or_default();
    first.parse().unwrap_or(f64::NAN)
}

fn today() -> Result<String> {
    let output = std::process::Command::new("date").arg("+%F").output();
    let output = output.context("cannot run date (package coreutils)")?;
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}
