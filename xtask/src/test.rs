//! `cargo xtask test`: makes sure that what the tests need is there, then runs them all.

use std::path::Path;

use anyhow::{Result, bail};

use crate::debian::{install, is_root, search_path, text_of};

/// Programs the tests call, and the Debian package each is in.
const NEEDED: [(&str, &str); 9] = [
    ("ip", "iproute2"),
    ("bridge", "iproute2"),
    ("tc", "iproute2"),
    ("curl", "curl"),
    ("unshare", "util-linux"),
    ("setpriv", "util-linux"),
    ("fsfreeze", "util-linux"),
    ("mkfs.ext4", "e2fsprogs"),
    ("cc", "gcc"),
];

pub(crate) fn run(further: &[String]) -> Result<()> {
    provide()?;
    let mut arguments = vec!["test", "--workspace", "--locked"];
    arguments.extend(further.iter().map(String::as_str));
    let path = search_path()?;
    let environment = [("PATH", text_of(path.as_ref())?)];
    crate::workspace::run("cargo", &arguments, &environment)
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
