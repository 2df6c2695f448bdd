//! `cargo xtask check`: format, the house's rules, lints and documentation, all with warnings denied.
//!
//! The guest and the fuzz targets are workspaces of their own, and are checked like the big one.

use anyhow::Result;

use crate::tidy;
use crate::workspace::run;

/// Manifests beside the workspace, and what checking them needs besides.
const BESIDE: [(&str, &[&str]); 2] = [
    // Built for a bare machine; its tests would not be.
    ("guest-images/builtin/Cargo.toml", &[]),
    // Without libFuzzer, which wants a C++ compiler.
    ("fuzz/Cargo.toml", &["--no-default-features"]),
];

pub(crate) fn check() -> Result<()> {
    tidy::run()?;
    // What is told at once if a lock file was forgotten would be told after minutes otherwise.
    for (manifest, _) in BESIDE {
        let fetch = ["fetch", "--locked", "--manifest-path", manifest];
        run("cargo", &fetch, &[])?;
    }
    run("cargo", &["fmt", "--all", "--check"], &[])?;
    let all = ["clippy", "--workspace", "--all-targets", "--locked"];
    let strict = ["--", "-D", "warnings"];
    run("cargo", &[&all[..], &strict].concat(), &[])?;
    // The rooms of the library that can be left out are not missed by the others.
    for features in ["", "runtime", "runtime,disks", "file-arbiter,conformance"] {
        let part = [
            "clippy",
            "-p",
            "understudy-replication",
            "--lib",
            "--no-default-features",
            "--features",
            features,
            "--locked",
        ];
        run("cargo", &[&part[..], &strict].concat(), &[])?;
    }
    // Those who embed the library need nothing of what only the command line needs.
    let library = [
        "check",
        "-p",
        "understudy-vmm",
        "--lib",
        "--no-default-features",
        "--locked",
    ];
    run("cargo", &library, &[])?;
    for (manifest, further) in BESIDE {
        run(
            "cargo",
            &["fmt", "--manifest-path", manifest, "--check"],
            &[],
        )?;
        let one = [
            "clippy",
            "--locked",
            "--target-dir",
            "target/beside",
            "--manifest-path",
            manifest,
        ];
        run("cargo", &[&one[..], further, &strict].concat(), &[])?;
    }
    let documentation = [
        "doc",
        "--workspace",
        "--no-deps",
        "--locked",
        "--document-private-items",
        "--features",
        "understudy-replication/conformance",
    ];
    let flags = "-D warnings -A rustdoc::private_intra_doc_links";
    run("cargo", &documentation, &[("RUSTDOCFLAGS", flags)])
}
