//! Debian's packages: downloaded once by apt-get, unpacked by dpkg-deb. What must not be done here: install
//! any, or run their scripts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::{Scratch, is_root, quiet, store};

/// The archives of packages; those that are not here yet are downloaded.
pub(crate) fn fetch(names: &[&str]) -> Result<Vec<PathBuf>> {
    let store = archives()?;
    if names.iter().any(|name| archive(&store, name).is_err()) {
        with_fresh_lists(|| download(&store, names))?;
    }
    names.iter().map(|name| archive(&store, name)).collect()
}

/// Unpacks packages into the directory `to`, unless it is there.
pub(crate) fn provide(names: &[&str], to: &Path) -> Result<()> {
    if to.exists() {
        return Ok(());
    }
    provide_archives(&fetch(names)?, to)
}

/// Unpacks archives into the directory `to`.
pub(super) fn provide_archives(archives: &[PathBuf], to: &Path) -> Result<()> {
    let parent = to.parent().context("packages go into a directory")?;
    let scratch = Scratch::new(parent)?;
    let contents = scratch.path().join("contents");
    for archive in archives {
        unpack(archive, &contents)?;
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
    eprintln!("          downloading {} packages", missing.len());
    let scratch = Scratch::new(store)?;
    quiet(
        Command::new("apt-get")
            // apt-get would complain that its own user cannot write here.
            .args(["-o", "APT::Sandbox::User=root", "-q", "download"])
            .args(&missing)
            .current_dir(scratch.path()),
    )?;
    for entry in fs::read_dir(scratch.path())? {
        // Last, so that what is there is whole.
        let entry = entry?;
        fs::rename(entry.path(), store.join(entry.file_name()))?;
    }
    Ok(())
}

/// Tries something with Debian's lists as they are, and if it fails once more with fresh ones: this machine may
/// have none, or old ones whose packages are no longer to be had.
pub(super) fn with_fresh_lists<T>(attempt: impl FnMut() -> Result<T>) -> Result<T> {
    twice(attempt, || {
        ensure!(
            is_root(),
            "Debian's lists of packages may be missing or old: run `apt-get update` as root"
        );
        eprintln!("          fetching Debian's lists");
        // Otherwise it is content with what it cannot reach.
        let strictly = ["-o", "APT::Update::Error-Mode=any", "-q", "update"];
        quiet(Command::new("apt-get").args(strictly)).map(drop)
    })
    .with_context(hint)
}

/// Does something again after a repair. If that is of no use, the error has the reasons of both.
fn twice<T>(
    mut attempt: impl FnMut() -> Result<T>,
    repair: impl FnOnce() -> Result<()>,
) -> Result<T> {
    let why = match attempt() {
        Ok(value) => return Ok(value),
        Err(why) => why,
    };
    repair().map_err(|further| anyhow!("{}\n{}", brief(&why), brief(&further)))?;
    attempt()
}

/// The beginning of an error: apt-get has a line for each package.
fn brief(error: &anyhow::Error) -> String {
    const LINES: usize = 3;
    let text = format!("{error:#}");
    let mut brief: Vec<&str> = text.lines().take(LINES).collect();
    if text.lines().count() > LINES {
        brief.push("…");
    }
    brief.join("\n")
}

/// What to do if there is no way to a package.
fn hint() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let system = release
        .lines()
        .find_map(|line| line.strip_prefix("PRETTY_NAME="))
        .map_or("another system", |name| name.trim_matches('"'));
    format!("no way to Debian's packages: this needs Debian 12 (here is {system}) and its network")
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
    fn a_failure_is_repaired_once_and_told_with_what_hindered_the_repair() {
        let mut attempts = 0;
        let mut second = || {
            attempts += 1;
            if attempts == 2 {
                Ok(attempts)
            } else {
                bail!("no lists")
            }
        };
        assert_eq!(twice(&mut second, || Ok(())).unwrap(), 2);
        let mut repairs = 0;
        let mut repair = || {
            repairs += 1;
            Ok(())
        };
        let error = twice(|| -> Result<()> { bail!("no such package") }, &mut repair).unwrap_err();
        assert_eq!(error.to_string(), "no such package");
        assert_eq!(twice(|| Ok(7), &mut repair).unwrap(), 7);
        assert_eq!(repairs, 1);
        let error = twice(
            || -> Result<()> { bail!("no lists") },
            || bail!("no network"),
        );
        assert_eq!(error.unwrap_err().to_string(), "no lists\nno network");
        let error = twice(|| -> Result<()> { bail!("1\n2\n3\n4\n5") }, || bail!("no"));
        assert_eq!(error.unwrap_err().to_string(), "1\n2\n3\n…\nno");
    }
}
