//! `cargo xtask test`: makes sure that what the tests need is there, then runs them all.

use std::path::Path;
use std::process::Command;

use anyhow::{Result, bail};

/// Programs the tests call, and the Debian package each is in.
const NEEDED: [(&str, &str); 7] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("curl", "curl"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("cc", "gcc"),
];

pub(crate) fn run(further: &[&str]) -> Result<()> {
    provide()?;
    let mut arguments = vec!["test", "--workspace", "--locked"];
    arguments.extend(further);
    crate::run("cargo", &arguments, &[])
}

fn provide() -> Result<()> {
    if !Path::new("/dev/kvm").exists() {
        bail!(
            "/dev/kvm is missing: the tests run real guests. On a physical host enable \
             virtualisation in the firmware and `modprobe kvm_intel` or `kvm_amd`; on a virtual one \
             ask for nested virtualisation"
        );
    }
    if !is_root() {
        bail!(
            "the tests make network namespaces and tap devices: run them as root \
             (`sudo env PATH=\"$PATH\" cargo xtask test`)"
        );
    }
    install(&NEEDED)
}

/// Installs the packages of programs that are missing; who is not root is told their names.
pub(crate) fn install(needed: &[(&str, &'static str)]) -> Result<()> {
    let mut packages: Vec<&str> = needed
        .iter()
        .filter(|(program, _)| !on_path(program))
        .map(|(_, package)| *package)
        .collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    if !on_path("apt-get") || !is_root() {
        bail!(
            "missing programs: install what your distribution calls {}",
            packages.join(", ")
        );
    }
    crate::run("apt-get", &["update", "-q"], &[])?;
    let mut arguments = vec!["install", "-q", "-y", "--no-install-recommends"];
    arguments.extend(packages);
    crate::run(
        "apt-get",
        &arguments,
        &[("DEBIAN_FRONTEND", "noninteractive")],
    )
}

fn on_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .any(|directory| directory.join(program).exists())
}

pub(crate) fn is_root() -> bool {
    let output = Command::new("id").arg("-u").output();
    output.is_ok_and(|output| output.stdout.starts_with(b"0\n"))
}
