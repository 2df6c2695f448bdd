//! Debian's packages: downloaded once by apt-get, unpacked by dpkg-deb. What must not be done here: install
//! any, or run their scripts.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use super::apt::{self, Release};
use super::{Scratch, quiet, store};

/// The archives of packages; those that are not here yet are downloaded.
pub(crate) fn fetch(names: &[&str]) -> Result<Vec<PathBuf>> {
    let store = archives()?;
    if names.iter().any(|name| archive(&store, name).is_err()) {
        apt::with_lists(Release::Stable, || download(&store, names))?;
    }
    names.iter().map(|name| archive(&store, name)).collect()
}

/// Unpacks packages into the directory `to`, unless it is there.
pub(crate) fn provide(names: &[&str], to: &Path) -> Result<()> {
    provide_archives(to, |_| fetch(names))
}

/// Unpacks archives into the directory `to`, unless it is there. Who gets them may use a directory for that.
pub(super) fn provide_archives(
    to: &Path,
    get: impl FnOnce(&Path) -> Result<Vec<PathBuf>>,
) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    let parent = to.parent().context("packages go into a directory")?;
    let scratch = Scratch::new(parent)?;
    let (archives, contents) = (
        scratch.path().join("archives"),
        scratch.path().join("contents"),
    );
    fs::create_dir(&archives)?;
    for archive in get(&archives)? {
        unpack(&archive, &contents)?;
    }
    publish(&contents, to)
}

/// Unpacks an archive's files below a directory.
pub(crate) fn unpack(archive: &Path, below: &Path) -> Result<()> {
    quiet(Command::new("dpkg-deb").arg("-x").arg(archive).arg(below)).map(drop)
}

/// Gives a whole directory the name under which it is looked for.
fn publish(whole: &Path, to: &Path) -> Result<()> {
    match fs::rename(whole, to) {
        // Another process was quicker.
        Err(_) if to.exists() => Ok(()),
        other => other.with_context(|| format!("cannot make {}", to.display())),
    }
}

/// Where the archives are.
pub(super) fn archives() -> Result<PathBuf> {
    let directory = store().join("packages");
    fs::create_dir_all(&directory)
        .with_context(|| format!("cannot make {}", directory.display()))?;
    Ok(directory)
}

/// The archive of a package, if it is there.
pub(super) fn archive(store: &Path, name: &str) -> Result<PathBuf> {
    let beginning = format!("{name}_");
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&beginning) && file.ends_with(".deb") {
            return Ok(path);
        }
    }
    bail!("apt-get did not download {name}")
}

/// Downloads those of the packages that are not there, with the lists as they are.
pub(super) fn download(store: &Path, names: &[&str]) -> Result<()> {
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| archive(store, name).is_err())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    let scratch = Scratch::new(store)?;
    download_to(scratch.path(), &missing, Release::Stable)?;
    for entry in fs::read_dir(scratch.path())? {
        // Last, so that what is there is whole.
        let entry = entry?;
        fs::rename(entry.path(), store.join(entry.file_name()))?;
    }
    Ok(())
}

/// Downloads packages (`NAME` or `NAME=VERSION`) into a directory.
fn download_to(directory: &Path, packages: &[impl AsRef<str>], release: Release) -> Result<()> {
    eprintln!("          downloading {} packages", packages.len());
    quiet(
        apt::apt("apt-get", release)
            .arg("download")
            .args(packages.iter().map(AsRef::as_ref))
            .current_dir(directory),
    )
    .map(drop)
}

/// Unpacks programs into the directory `to`, unless it is there, with all they need that this machine does not
/// have: nothing is installed, and what is may be another version. `release`: take the newest that Debian's
/// release or its backports have.
pub(crate) fn provide_programs(names: &[&str], release: Release, to: &Path) -> Result<()> {
    provide_archives(to, |archives| {
        apt::with_lists(release, || {
            let packages = with_dependencies(names, release)?;
            download_to(archives, &packages, release)
        })?;
        let entries = fs::read_dir(archives)?;
        entries.map(|entry| Ok(entry?.path())).collect()
    })
}

/// These packages, and what they need that is not installed, as `NAME=VERSION`.
fn with_dependencies(names: &[&str], release: Release) -> Result<Vec<String>> {
    let mut wish = apt::apt("apt-get", release);
    wish.args(["install", "--simulate", "--reinstall"]);
    wish.arg("--no-install-recommends");
    if release == Release::Backports {
        wish.args(["-t", &apt::backports()?]);
    }
    let packages = installed(&quiet(wish.args(names))?);
    for name in names {
        let has_it = packages.iter().any(|package| {
            package
                .strip_prefix(name)
                .is_some_and(|rest| rest.starts_with('='))
        });
        ensure!(has_it, "apt-get has no {name}: it is for {packages:?}");
    }
    Ok(packages)
}

/// Where programs that were unpacked into `from` find libraries, as `LD_LIBRARY_PATH`.
pub(crate) fn libraries(from: &Path) -> OsString {
    let mut paths = from.join("usr/lib/x86_64-linux-gnu").into_os_string();
    paths.push(":");
    paths.push(from.join("lib/x86_64-linux-gnu"));
    paths
}

/// `NAME=VERSION` of what `apt-get install --simulate` would install: lines such as
/// `Inst seabios [1.16.2-1] (1.16.3-2 Debian:12.15/oldstable [all])`, the version that is there in brackets.
fn installed(simulation: &str) -> Vec<String> {
    simulation
        .lines()
        .filter_map(|line| line.strip_prefix("Inst "))
        .filter_map(|line| {
            let name = line.split(' ').next()?;
            let version = line.split_once('(')?.1.split(' ').next()?;
            Some(format!("{name}={version}"))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_archive_is_found_by_its_packages_whole_name() {
        let scratch = Scratch::new(&std::env::temp_dir().join("xtask-packages")).unwrap();
        let store = scratch.path();
        for file in [
            "libc6-dev_2.36-9_amd64.deb",
            "gcc_4%3a12.2.0-3_amd64.deb",
            "make_4.3_amd64.deb.part",
        ] {
            fs::write(store.join(file), "").unwrap();
        }
        let found = archive(store, "gcc").unwrap();
        assert_eq!(found, store.join("gcc_4%3a12.2.0-3_amd64.deb"));
        for missing in ["libc6", "make", "amd64"] {
            let error = archive(store, missing).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }

    #[test]
    fn what_is_published_second_does_not_replace_what_is_there() {
        let scratch = Scratch::new(&std::env::temp_dir().join("xtask-publish")).unwrap();
        let to = scratch.path().join("kernel");
        for content in ["first", "second"] {
            let whole = scratch.path().join(content);
            fs::create_dir(&whole).unwrap();
            fs::write(whole.join("file"), content).unwrap();
            publish(&whole, &to).unwrap();
        }
        assert_eq!(fs::read_to_string(to.join("file")).unwrap(), "first");
        let error = publish(&scratch.path().join("nothing"), &scratch.path().join("to"));
        assert!(error.is_err());
    }

    #[test]
    fn what_would_be_installed_is_named_with_its_version() {
        let simulation = "Reading package lists...\n\
            Inst seabios [1.16.2-1] (1.16.3-2~bpo12+1 Debian Backports:oldstable-backports [all])\n\
            Inst libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])\n\
            Remv qemu-utils [1:7.2]\nConf libslirp0 (4.7.0-1 Debian:12.15/oldstable [amd64])\n";
        assert_eq!(
            installed(simulation),
            ["seabios=1.16.3-2~bpo12+1", "libslirp0=4.7.0-1"]
        );
    }
}
