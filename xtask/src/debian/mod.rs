//! What the tasks take from Debian. Nothing in here knows what it is for.
//!
//! ```text
//!   programs.rs   programs that tasks call: nothing else is ever installed
//!   apt.rs        apt-get with lists of its own, Debian's backports among them
//!   packages.rs   packages that are downloaded once and only unpacked, programs among them that are not installed
//!   kernel.rs     a kernel among them; modules.rs: its modules, in the order in which they load
//!   initramfs.rs  busybox, modules, an init script, as an archive
//!   files.rs      directories that always become the same bytes
//! ```
//!
//! Archives are kept in `target/debian`. What must not be done here: run a script of a package that is unpacked.

mod apt;
mod files;
mod initramfs;
mod kernel;
mod modules;
mod packages;
mod programs;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

pub(crate) use apt::Release;
pub(crate) use files::{EPOCH, Scratch, files_below, settle};
pub(crate) use initramfs::{Tree, provide_busybox};
pub(crate) use kernel::{Flavor, Kernel};
pub(crate) use packages::{fetch, libraries, provide, provide_programs, unpack};
pub(crate) use programs::{install, is_root, search_path};

/// Where everything from Debian is kept.
fn store() -> PathBuf {
    crate::workspace::root().join("target/debian")
}

/// Forgets everything that was downloaded.
pub(crate) fn forget() -> Result<()> {
    let store = store();
    if store.exists() {
        std::fs::remove_dir_all(&store)
            .with_context(|| format!("cannot remove {}", store.display()))?;
    }
    Ok(())
}

/// Runs a program quietly and fails with what it said if it does. Returns what it printed.
pub(crate) fn quiet(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    // In words that do not depend on the language of whoever runs it.
    let output = command
        .env("LC_ALL", "C")
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

pub(crate) fn text_of(path: &Path) -> Result<&str> {
    path.to_str()
        .with_context(|| format!("{} is not UTF-8", path.display()))
}
