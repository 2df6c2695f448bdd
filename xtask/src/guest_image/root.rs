//! The root file system: Debian's packages without what a small guest does not need, our configuration, our
//! programs. What must not be done here: run anything of it, or mount it.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::{Work, lines};
use crate::debian::{self, EPOCH, files_below, quiet, text_of};

const PACKAGES: &str = include_str!("../../../guest-images/linux/packages.txt");
const UNNEEDED: &str = include_str!("../../../guest-images/linux/unneeded.txt");
const SOURCES: &str = "guest-images/linux";
/// Small, because a new standby copies it whole. Half of it is free.
const SIZE_MIB: u64 = 256;
/// Fixed, as every input is.
const UUID: &str = "5a3c1f0e-7b2d-4e86-9f41-d0c8b7a69e35";
/// Where programs look for libraries; there is no `ld.so.cache`.
const LIBRARIES: [&str; 3] = ["lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu", "lib64"];
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Makes the image.
pub(super) fn build(work: &Work, image: &Path) -> Result<()> {
    work.step("guest's own programs");
    let tool = build_tool()?;
    let names: Vec<&str> = lines(PACKAGES).collect();
    work.step(&format!("root file system: {} packages", names.len()));
    let archives = debian::fetch(&names)?;
    let tree = work.path().join("root");
    fs::create_dir_all(&tree)?;
    for archive in &archives {
        debian::unpack(archive, &tree)?;
    }
    for path in lines(UNNEEDED) {
        remove(&tree.join(path)).with_context(|| format!("unneeded.txt names {path}"))?;
    }
    work.step("configuration");
    furnish(&tree, &tool)?;
    write_manifest(&tree, &archives)?;
    check_libraries(&tree)?;
    debian::settle(&tree)?;
    work.step("ext4 image");
    let unfinished = work.path().join("rootfs.ext4");
    pack(&tree, &unfinished)?;
    // Last, so that what is there is whole.
    fs::rename(&unfinished, image)?;
    Ok(())
}

/// Builds `guest-tool` so that it needs no libraries.
fn build_tool() -> Result<PathBuf> {
    let build = super::directory().join("build");
    let directory = text_of(&build)?;
    crate::workspace::run(
        "cargo",
        &[
            "build",
            "--quiet",
            "--release",
            "--target",
            TARGET,
            "-p",
            "understudy-guest-tool",
        ],
        &[
            (
                "RUSTFLAGS",
                "-C target-feature=+crt-static -C strip=symbols",
            ),
            ("CARGO_TARGET_DIR", directory),
        ],
    )?;
    Ok(build.join(TARGET).join("release/guest-tool"))
}

fn remove(path: &Path) -> Result<()> {
    if path.symlink_metadata()?.is_dir() {
        fs::remove_dir_all(path)?;
    } else {
        fs::remove_file(path)?;
    }
    Ok(())
}

/// What Debian's packages do not bring.
fn furnish(tree: &Path, tool: &Path) -> Result<()> {
    for directory in [
        "data/fsync",
        "data/redis",
        "dev",
        "proc",
        "root",
        "run",
        "sys",
        "tmp",
        "usr/local/bin",
        "var/log",
        "var/run",
    ] {
        fs::create_dir_all(tree.join(directory))?;
    }
    let sources = crate::workspace::root().join(SOURCES);
    copy_tree(&sources.join("root"), tree)?;
    copy_tree(&sources.join("compile"), &tree.join("opt/compile"))?;
    fs::copy(tool, tree.join("usr/local/bin/guest-tool"))?;
    install_busybox(tree)
}

fn copy_tree(from: &Path, into: &Path) -> Result<()> {
    for path in files_below(from)? {
        let target = into.join(path.strip_prefix(from)?);
        if path.is_dir() {
            fs::create_dir_all(&target)?;
        } else {
            fs::copy(&path, &target)?;
        }
    }
    Ok(())
}

/// Links busybox's applets where no package has the program. Debian's busybox is asked for their names; it is
/// static and for this machine's kind of processor.
fn install_busybox(tree: &Path) -> Result<()> {
    let applets = quiet(Command::new(tree.join("bin/busybox")).arg("--list-full"))?;
    for applet in applets.lines() {
        let name = applet.rsplit('/').next().unwrap_or_default();
        let link = tree.join(applet);
        let taken = ["bin", "sbin", "usr/bin", "usr/sbin"]
            .iter()
            .any(|directory| tree.join(directory).join(name).symlink_metadata().is_ok());
        if taken || name == "busybox" {
            continue;
        }
        let parent = link.parent().context("an applet is in a directory")?;
        fs::create_dir_all(parent)?;
        symlink("/bin/busybox", &link)?;
    }
    Ok(())
}

/// Which versions it is made of.
fn write_manifest(tree: &Path, archives: &[PathBuf]) -> Result<()> {
    let names: Vec<_> = archives
        .iter()
        .filter_map(|archive| archive.file_name())
        .map(|name| name.to_string_lossy().replace("%3a", ":") + "\n")
        .collect();
    fs::write(tree.join("etc/packages"), names.concat())?;
    Ok(())
}

/// Fails if a program or library needs a library that is not there.
fn check_libraries(tree: &Path) -> Result<()> {
    let mut missing = Vec::new();
    for path in files_below(tree)? {
        if path.is_symlink() || !path.is_file() || !fs::read(&path)?.starts_with(b"\x7fELF") {
            continue;
        }
        // Object files and static programs have no dynamic section: nothing to find.
        let Ok(text) = quiet(Command::new("readelf").arg("-d").arg(&path)) else {
            bail!("readelf cannot read {}", path.display());
        };
        for line in text.lines().filter(|line| line.contains("(NEEDED)")) {
            let library = line.split(['[', ']']).nth(1).unwrap_or_default();
            let there = LIBRARIES
                .iter()
                .any(|directory| tree.join(directory).join(library).exists());
            if !there {
                missing.push(format!("{library} for {}", path.display()));
            }
        }
    }
    ensure!(
        missing.is_empty(),
        "packages.txt misses libraries: {}",
        missing.join(", ")
    );
    Ok(())
}

/// Makes an ext4 image of a tree, always the same.
fn pack(tree: &Path, image: &Path) -> Result<()> {
    let file = fs::File::create(image)?;
    file.set_len(SIZE_MIB << 20)?;
    let options = format!("lazy_itable_init=0,lazy_journal_init=0,root_owner=0:0,hash_seed={UUID}");
    let search_path = debian::search_path()?;
    let e2fsprogs = |program: &str| {
        let mut command = Command::new(program);
        command
            .env("PATH", &search_path)
            .env("E2FSPROGS_FAKE_TIME", EPOCH.as_secs().to_string());
        command
    };
    quiet(
        e2fsprogs("mkfs.ext4")
            .args(["-q", "-F", "-L", "understudy", "-U", UUID, "-E", &options])
            .args(["-b", "4096", "-m", "0", "-J", "size=8", "-d"])
            .arg(tree)
            .arg(image),
    )?;
    // The time at which a file's metadata changed cannot be set on this machine, and its owner by root alone:
    // both are set in the image.
    let mut script = String::new();
    for path in files_below(tree)? {
        let name = path.strip_prefix(tree)?.display();
        let when = EPOCH.as_secs();
        for (field, value) in [("uid", "0"), ("gid", "0"), ("ctime", &format!("@{when}"))] {
            script.push_str(&format!("set_inode_field \"/{name}\" {field} {value}\n"));
        }
    }
    let list = image.with_extension("debugfs");
    fs::write(&list, script)?;
    quiet(
        e2fsprogs("debugfs")
            .arg("-w")
            .arg("-f")
            .arg(&list)
            .arg(image),
    )?;
    quiet(e2fsprogs("e2fsck").args(["-f", "-n"]).arg(image)).map(drop)
}
