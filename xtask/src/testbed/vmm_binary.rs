//! The `vmm` binary for hosts that have nothing else: linked statically, without debugging information.

use std::path::{Path, PathBuf};

use anyhow::Result;

use crate::debian::text_of;
use crate::workspace::run;

const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Builds it.
pub(super) fn build(directory: &Path) -> Result<PathBuf> {
    let build = directory.join("build");
    run(
        "cargo",
        &[
            "build",
            "--locked",
            "--target",
            TARGET,
            "-p",
            "understudy-vmm",
            "--bin",
            "vmm",
        ],
        &[
            ("RUSTFLAGS", "-C target-feature=+crt-static"),
            ("CARGO_TARGET_DIR", text_of(&build)?),
        ],
    )?;
    let stripped = directory.join("vmm");
    let built = build.join(TARGET).join("debug/vmm");
    run("strip", &["-o", text_of(&stripped)?, text_of(&built)?], &[])?;
    Ok(stripped)
}
