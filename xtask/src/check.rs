//! `cargo xtask check`: format, lints and documentation.

use anyhow::Result;

const GUEST: &str = "guest-images/builtin/Cargo.toml";

pub(crate) fn run() -> Result<()> {
    crate::run("cargo", &["fmt", "--all", "--check"], &[])?;
    crate::run("cargo", &["fmt", "--manifest-path", GUEST, "--check"], &[])?;
    let lints = [
        "clippy",
        "--workspace",
        "--all-targets",
        "--locked",
        "--",
        "-D",
        "warnings",
    ];
    crate::run("cargo", &lints, &[])?;
    let documentation = [
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
        "--document-private-items",
    ];
    crate::run(
        "cargo",
        &documentation,
        &[(
            "RUSTDOCFLAGS",
            "-D warnings -A rustdoc::private_intra_doc_links",
        )],
    )
}
