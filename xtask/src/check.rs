//! `cargo xtask check`: format, lints and documentation.

use anyhow::Result;

use crate::run;

const GUEST: &str = "guest-images/builtin/Cargo.toml";

pub(crate) fn run() -> Result<()> {
    run("cargo", &["fmt", "--all", "--check"], &[])?;
    run("cargo", &["fmt", "--manifest-path", GUEST, "--check"], &[])?;
    let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    run("cargo", &lints, &[])?;
    let documentation = ["doc", "--workspace", "--no-deps", "--locked", "--document-private-items"];
    run("cargo", &documentation, &[("RUSTDOCFLAGS", "-D warnings -A rustdoc::private_intra_doc_links")])
}
