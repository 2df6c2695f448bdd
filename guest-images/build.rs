//! Builds the built-in guest and leaves its ELF image in `OUT_DIR`.
//!
//! The guest is for a bare machine, so nothing of this build's flags may reach it: flags, wrappers and
//! target directory are its own.

use std::path::{Path, PathBuf};
use std::process::{Command, exit};
use std::{env, fs};

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// No relocations at load time, and no data below the stack pointer, where interrupts write.
const RUSTFLAGS: [&str; 2] = ["-Crelocation-model=static", "-Cno-redzone=yes"];
/// What cargo, rustup and this build's user may have set for the outer build only.
const NOT_INHERITED: [&str; 9] = [
    "CARGO_BUILD_RUSTC_WRAPPER",
    "CARGO_BUILD_RUSTFLAGS",
    "CARGO_BUILD_TARGET",
    "CARGO_TARGET_DIR",
    "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
    "RUSTC_WORKSPACE_WRAPPER",
    "RUSTC_WRAPPER",
    "RUSTDOCFLAGS",
    "RUSTFLAGS",
];

fn main() {
    let manifest_dir = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out_dir = PathBuf::from(variable("OUT_DIR"));
    let guest_dir = manifest_dir.join("builtin");
    for input in ["src", "Cargo.toml", "Cargo.lock", "build.rs", "link.ld"] {
        watch(&guest_dir.join(input));
    }
    for input in ["src", "Cargo.toml"] {
        watch(&manifest_dir.join("workload").join(input));
    }
    watch(&manifest_dir.join("build.rs"));

    if variable("CARGO_CFG_TARGET_ARCH") != "x86_64" {
        fail("the built-in guest is for x86-64 hosts only");
    }
    let target_dir = out_dir.join("builtin-target");
    let mut cargo = Command::new(variable("CARGO"));
    cargo
        .current_dir(&guest_dir)
        .args([
            "build",
            "--release",
            "--locked",
            "--target",
            TARGET,
            "--target-dir",
        ])
        .arg(&target_dir)
        .env("CARGO_ENCODED_RUSTFLAGS", RUSTFLAGS.join("\x1f"));
    for name in NOT_INHERITED {
        cargo.env_remove(name);
    }
    // Cargo tells a build script its features, profile and packages in CARGO_* variables as well; the
    // inner cargo sets its own.
    match cargo.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "the built-in guest does not build ({status}). Its compiler output is above; to see it \
             alone, run the same in {}:\n  CARGO_ENCODED_RUSTFLAGS=$'{}' cargo build --release \
             --locked --target {TARGET}\nIf the target is missing: rustup target add {TARGET}",
            guest_dir.display(),
            RUSTFLAGS.join("\\x1f"),
        )),
        Err(error) => fail(&format!(
            "cargo does not start for the built-in guest: {error}"
        )),
    }
    let image = target_dir
        .join(TARGET)
        .join("release/understudy-builtin-guest");
    if let Err(error) = fs::copy(&image, out_dir.join("builtin-guest.elf")) {
        fail(&format!("{}: {error}", image.display()));
    }
}

fn variable(name: &str) -> String {
    env::var(name).unwrap_or_else(|error| fail(&format!("{name}: {error}")))
}

fn watch(path: &Path) {
    println!("cargo::rerun-if-changed={}", path.display());
}

fn fail(why: &str) -> ! {
    for line in why.lines() {
        println!("cargo::error={line}");
    }
    exit(1)
}
