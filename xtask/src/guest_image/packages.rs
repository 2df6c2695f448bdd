//! Debian's packages: downloaded once by apt-get, unpacked by dpkg-deb. What must not be done here: install
//! any, or run their scripts.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::{directory, quiet};

/// The package that a package of a kernel's flavour stands for.
pub(super) fn kernel_package(flavor: &str) -> Result<String> {
    let kept = directory().join("packages").join(format!("{flavor}.name"));
    if let Ok(name) = fs::read_to_string(&kept) {
        return Ok(name);
    }
    let find = || -> Result<Option<String>> {
        let text = quiet(Command::new("apt-cache").args(["depends", "--important", "--", flavor]))?;
        Ok(text
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
            .map(|rest| format!("linux-image-{rest}")))
    };
    let name = match find() {
        Ok(Some(name)) => name,
        _ => {
            update()?;
            find()?.with_context(|| format!("Debian's lists have no package {flavor}"))?
        }
    };
    fs::create_dir_all(directory().join("packages"))?;
    fs::write(&kept, &name)?;
    Ok(name)
}

/// The archives of packages; those that are not here yet are downloaded.
pub(super) fn fetch(names: &[&str]) -> Result<Vec<PathBuf>> {
    let store = directory().join("packages");
    fs::create_dir_all(&store)?;
    let missing: Vec<&str> = names
        .iter()
        .copied()
        .filter(|name| archive(&store, name).is_err())
        .collect();
    if !missing.is_empty() {
        eprintln!("          downloading {} packages", missing.len());
        let download = || {
            quiet(
                Command::new("apt-get")
                    .args(["-o", "APT::Sandbox::User=root", "-q", "download"])
                    .args(&missing)
                    .current_dir(&store),
            )
        };
        if download().is_err() {
            update()?;
            download().context("cannot download packages; this needs Debian 12 and its network")?;
        }
    }
    names.iter().map(|name| archive(&store, name)).collect()
}

/// Fresh lists, for a machine that has none, or whose packages are no longer to be had.
fn update() -> Result<()> {
    eprintln!("          fetching Debian's lists");
    quiet(Command::new("apt-get").args(["-q", "update"]))
        .map(drop)
        .context("run `apt-get update` as root")
}

fn archive(store: &Path, name: &str) -> Result<PathBuf> {
    let beginning = format!("{name}_");
    for entry in fs::read_dir(store)? {
        let path = entry?.path();
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        if file.starts_with(&beginning) && file.ends_with(".deb") {
            return Ok(path);
        }
    }
    anyhow::bail!("apt-get did not download {name}")
}

/// Unpacks an archive's files below a directory.
pub(super) fn unpack(archive: &Path, below: &Path) -> Result<()> {
    quiet(Command::new("dpkg-deb").arg("-x").arg(archive).arg(below)).map(drop)
}
