//! Debian's cloud kernel, downloaded and unpacked: its image, and its modules in the order in which they load.
//! What must not be done here: install anything on this machine.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::packages;

const PACKAGE: &str = "linux-image-cloud-amd64";

/// A kernel, unpacked.
pub(crate) struct Kernel {
    pub(crate) image: PathBuf,
    /// Where its modules are.
    modules: PathBuf,
}

impl Kernel {
    /// Downloads the kernel if it is not below `directory` already.
    pub(super) fn provide(directory: &Path) -> Result<Self> {
        let unpacked = directory.join("kernel");
        if !unpacked.exists() {
            packages::unpack(&[&package()?], &unpacked)?;
        }
        Self::find(directory)
    }

    /// The kernel that [`Kernel::provide`] has left below `directory`.
    pub(super) fn find(directory: &Path) -> Result<Self> {
        Self::unpacked(&directory.join("kernel"))
    }

    /// The kernel of a package that is unpacked there.
    pub(crate) fn unpacked(unpacked: &Path) -> Result<Self> {
        let only = |below: &str, beginning: &str| -> Result<PathBuf> {
            let below = unpacked.join(below);
            let mut entries = fs::read_dir(&below)?.collect::<Result<Vec<_>, _>>()?;
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
    pub(crate) fn modules(&self, wanted: &[&str]) -> Result<Vec<PathBuf>> {
        let mut files = HashMap::new();
        collect(&self.modules, &mut files)?;
        // What this kernel has built in needs no loading.
        let builtin = fs::read_to_string(self.modules.with_file_name("modules.builtin"));
        let builtin = builtin.context("modules.builtin of the kernel")?;
        let is_builtin = |name: &str| {
            let mut stems = builtin
                .lines()
                .filter_map(|line| Path::new(line).file_stem());
            stems.any(|stem| plain(&stem.to_string_lossy()) == plain(name))
        };
        let mut ordered = Vec::new();
        for name in wanted.iter().filter(|name| !is_builtin(name)) {
            add(name, &files, &mut ordered)?;
        }
        Ok(ordered)
    }
}

/// The package with the image: the one that is asked for only depends on it.
fn package() -> Result<String> {
    let output = Command::new("apt-cache")
        .args(["depends", "--important", PACKAGE])
        .output()
        .context("cannot run apt-cache; the testbed needs Debian")?;
    let text = String::from_utf8_lossy(&output.stdout);
    let package = text
        .lines()
        .find_map(|line| line.trim().strip_prefix("Depends: linux-image-"))
        .with_context(|| format!("apt-cache knows no {PACKAGE}: run apt-get update"))?;
    Ok(format!("linux-image-{package}"))
}

/// `_` and `-` are the same in names of modules.
fn plain(name: &str) -> String {
    name.replace('-', "_")
}

/// Module files below `directory` by name.
fn collect(directory: &Path, files: &mut HashMap<String, PathBuf>) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(name) = path.file_stem()
        {
            files.insert(plain(&name.to_string_lossy()), path);
        }
    }
    Ok(())
}

fn add(name: &str, files: &HashMap<String, PathBuf>, ordered: &mut Vec<PathBuf>) -> Result<()> {
    let file = files
        .get(&plain(name))
        .with_context(|| format!("the kernel has no module {name}"))?;
    if ordered.contains(file) {
        return Ok(());
    }
    for dependency in dependencies(&fs::read(file)?) {
        add(&dependency, files, ordered)?;
    }
    ordered.push(file.clone());
    Ok(())
}

/// A module names what it needs itself, in its section of NUL-terminated `key=value` texts.
fn dependencies(module: &[u8]) -> Vec<String> {
    module
        .split(|byte| *byte == 0)
        .find_map(|text| text.strip_prefix(b"depends="))
        .map(|names| String::from_utf8_lossy(names).into_owned())
        .unwrap_or_default()
        .split(',')
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_come_after_what_they_need() {
        let directory =
            std::env::temp_dir().join(format!("testbed-modules.{}", std::process::id()));
        let modules = directory.join("kernel");
        fs::create_dir_all(modules.join("net")).unwrap();
        fs::write(
            directory.join("modules.builtin"),
            "kernel/fs/ext4/ext4.ko\n",
        )
        .unwrap();
        let module = |name: &str, needs: &str| {
            let text = format!("\x7fELF\0license=GPL\0depends={needs}\0name={name}\0");
            fs::write(modules.join(name), text).unwrap();
        };
        module("net/virtio_net.ko", "virtio,net_failover");
        module("net/net_failover.ko", "failover");
        module("failover.ko", "");
        module("virtio.ko", "virtio-ring");
        module("virtio-ring.ko", "");
        let kernel = Kernel {
            image: PathBuf::new(),
            modules,
        };
        let ordered = kernel.modules(&["virtio_net", "ext4", "virtio"]);
        let missing = kernel.modules(&["virtio_net", "tun"]);
        fs::remove_dir_all(&directory).unwrap();
        let names: Vec<_> = (ordered.unwrap().iter())
            .map(|path| path.file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        let expected = [
            "virtio-ring",
            "virtio",
            "failover",
            "net_failover",
            "virtio_net",
        ];
        assert_eq!(names, expected);
        assert!(missing.unwrap_err().to_string().contains("no module tun"));
    }
}
