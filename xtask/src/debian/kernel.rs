//! Debian's kernels, downloaded and unpacked: the image, and where the modules are.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use super::apt::{self, Release};
use super::packages::{archive, archives, download};
use super::{modules, packages, quiet};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, clap::ValueEnum)]
pub(crate) enum Flavor {
    /// `linux-image-cloud-amd64`: for virtual machines.
    Cloud,
    /// `linux-image-amd64`: for everything.
    Generic,
}

impl Flavor {
    /// The package that stands for the newest of its kernels.
    pub(crate) fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        }
    }
}

/// A kernel, unpacked.
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Where its modules are.
    modules: PathBuf,
}

impl Kernel {
    /// Downloads and unpacks the kernel of a flavour, unless there is one below `directory` already.
    pub(crate) fn provide(directory: &Path, flavor: Flavor) -> Result<Self> {
        packages::provide_archives(&directory.join("kernel"), |_| Ok(vec![fetch(flavor)?]))?;
        Self::find(directory)
    }

    /// The kernel that [`Kernel::provide`] has left below `directory`.
    pub(crate) fn find(directory: &Path) -> Result<Self> {
        let unpacked = directory.join("kernel");
        let only = |below: &str, beginning: &str| -> Result<PathBuf> {
            let below = unpacked.join(below);
            let entries = fs::read_dir(&below);
            let entries = entries.with_context(|| format!("no kernel in {}", below.display()))?;
            let mut entries = entries.collect::<Result<Vec<_>, _>>()?;
            entries.retain(|entry| entry.file_name().to_string_lossy().starts_with(beginning));
            ensure!(
                entries.len() == 1,
                "expected one {beginning}* in {}; remove {} to download it again",
                below.display(),
                unpacked.display()
            );
            Ok(entries[0].path())
        };
        Ok(Self {
            image: only("boot", "vmlinuz-")?,
            modules: only("lib/modules", "")?.join("kernel"),
        })
    }

    /// The files of the modules called `wanted` and of what they depend on, each after what it needs.
    pub(super) fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        modules::in_order(&self.modules, wanted)
    }
}

/// The archive of the newest kernel of a flavour, or of the one that is here.
fn fetch(flavor: Flavor) -> Result<PathBuf> {
    let store = archives()?;
    let kept = store.join(format!("{}.name", flavor.package()));
    if let Ok(name) = fs::read_to_string(&kept)
        && let Ok(found) = archive(&store, &name)
    {
        return Ok(found);
    }
    // Together: with fresh lists it may be another kernel.
    let name = apt::with_lists(Release::Stable, || {
        let name = newest(flavor)?;
        download(&store, &[&name])?;
        Ok(name)
    })?;
    fs::write(&kept, &name)?;
    archive(&store, &name)
}

/// The package with the image: that of the flavour only depends on it.
fn newest(flavor: Flavor) -> Result<String> {
    let package = flavor.package();
    let text = quiet(apt::apt("apt-cache", Release::Stable).args([
        "depends",
        "--important",
        "--",
        package,
    ]))?;
    image_package(&text).with_context(|| format!("apt-cache knows no kernel of {package}"))
}

fn image_package(depends: &str) -> Option<String> {
    depends
        .lines()
        .filter_map(|line| {
            line.trim()
                .trim_start_matches('|')
                .strip_prefix("Depends: ")
        })
        .find(|package| package.starts_with("linux-image-"))
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::super::Scratch;
    use super::*;

    #[test]
    fn the_package_with_the_image_is_what_the_flavour_depends_on() {
        let text = "linux-image-cloud-amd64\n  Depends: linux-base\n \
            |Depends: linux-image-6.1.0-56-cloud-amd64\n  Depends: linux-image-6.1.0-56-cloud-amd64-unsigned\n";
        assert_eq!(
            image_package(text).as_deref(),
            Some("linux-image-6.1.0-56-cloud-amd64")
        );
        assert_eq!(image_package("linux-image-cloud-amd64\n"), None);
    }

    #[test]
    fn what_is_not_one_kernel_is_refused() {
        let scratch = Scratch::new(&std::env::temp_dir().join("xtask-kernel")).unwrap();
        let unpacked = scratch.path().join("kernel");
        let message = || match Kernel::find(scratch.path()) {
            Ok(kernel) => kernel.image.display().to_string(),
            Err(error) => error.to_string(),
        };
        assert!(message().starts_with("no kernel in "), "{}", message());
        for directory in ["boot", "lib/modules/6.1.0-56"] {
            fs::create_dir_all(unpacked.join(directory)).unwrap();
        }
        fs::write(unpacked.join("boot/vmlinuz-6.1.0-56"), "").unwrap();
        fs::write(unpacked.join("boot/config-6.1.0-56"), "").unwrap();
        assert!(message().ends_with("kernel/boot/vmlinuz-6.1.0-56"));
        fs::write(unpacked.join("boot/vmlinuz-6.1.0-57"), "").unwrap();
        assert!(
            message().starts_with("expected one vmlinuz-* in "),
            "{}",
            message()
        );
    }
}
