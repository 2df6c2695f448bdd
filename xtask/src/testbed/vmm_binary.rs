//! The `vmm` binary for hosts that have nothing else: as the tests build it, without debugging information, and
//! with the libraries it is linked with, which are this machine's.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Result, ensure};

use crate::debian::{Tree, quiet, text_of};
use crate::workspace::{root, run};

/// Where every program looks for its libraries.
const LIBRARIES: &str = "lib/x86_64-linux-gnu";

/// Builds it with the tests, which have other features: after them, nothing is left to build.
pub(super) fn build(directory: &Path) -> Result<PathBuf> {
    run(
        "cargo",
        &["test", "--locked", "--workspace", "--no-run"],
        &[],
    )?;
    let stripped = directory.join("vmm");
    let built = root().join("target/debug/vmm");
    run("strip", &["-o", text_of(&stripped)?, text_of(&built)?], &[])?;
    Ok(stripped)
}

/// Puts it and its libraries into a host.
pub(super) fn copy(vmm: &Path, tree: &Tree) -> Result<()> {
    copy_program(vmm, "bin/vmm", OsStr::new(""), tree)
}

/// Puts a program and its libraries into a tree: those in the directories `own`, each where its program looks for it
/// without being told, and this machine's.
pub(super) fn copy_program(program: &Path, to: &str, own: &OsStr, tree: &Tree) -> Result<()> {
    tree.copy(program, to)?;
    let listed = quiet(Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", own))?;
    let libraries = libraries(&listed);
    ensure!(!libraries.is_empty(), "ldd names no library of {to}");
    let own: Vec<PathBuf> = std::env::split_paths(own).collect();
    for library in libraries {
        let from_here = library
            .parent()
            .is_some_and(|parent| own.iter().any(|it| it == parent));
        let place = match library.file_name() {
            Some(name) if from_here => Path::new(LIBRARIES).join(name),
            _ => library.strip_prefix("/")?.to_owned(),
        };
        tree.copy(&library, place)?;
    }
    Ok(())
}

/// The files in what `ldd` prints: `NAME => FILE (ADDRESS)`, or `FILE (ADDRESS)` for the loader.
fn libraries(ldd: &str) -> Vec<PathBuf> {
    let file = |line: &str| {
        let file = line.split_whitespace().find(|word| word.starts_with('/'))?;
        Some(PathBuf::from(file))
    };
    ldd.lines().filter_map(file).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_of_libraries_are_found_and_the_kernel_s_own_has_none() {
        let ldd = "\tlinux-vdso.so.1 (0x00007f35)\n\
            \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f39)\n\
            \t/lib64/ld-linux-x86-64.so.2 (0x00007f3a)\n";
        let files = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(libraries(ldd), files.map(PathBuf::from));
    }
}
