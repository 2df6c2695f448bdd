//! An initramfs: busybox, kernel modules, an init script, and whatever else is put in. What must not be done
//! here: run anything in it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;

const BUSYBOX: &str = "/bin/busybox";

/// A directory that becomes an initramfs.
pub(super) struct Tree(PathBuf);

impl Tree {
    pub(super) fn new(below: &Path, name: &str, init: &str) -> Result<Self> {
        let tree = Self(below.join(name));
        if tree.0.exists() {
            fs::remove_dir_all(&tree.0)?;
        }
        for directory in ["bin", "dev", "guest", "modules", "proc", "sys", "tmp"] {
            fs::create_dir_all(tree.0.join(directory))?;
        }
        let busybox = Path::new(BUSYBOX);
        ensure!(
            busybox.exists(),
            "{BUSYBOX} is missing: install the package busybox-static"
        );
        tree.copy(busybox, "bin/busybox")?;
        symlink("busybox", tree.0.join("bin/sh"))?;
        let script = tree.0.join("init");
        fs::write(&script, init)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(tree)
    }

    /// Puts modules in `/modules`, named in `/modules/order` so that each comes after what it needs.
    pub(super) fn modules(&self, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
        let mut order = String::new();
        for file in kernel.modules(wanted)? {
            let name = file.file_name().context("a module has a name")?;
            let name = name.to_string_lossy();
            self.copy(&file, format!("modules/{name}"))?;
            order.push_str(&format!("{name}\n"));
        }
        fs::write(self.0.join("modules/order"), order)?;
        Ok(())
    }

    pub(super) fn copy(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        fs::copy(from, self.0.join(to))
            .with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// Packs it into an uncompressed cpio archive beside it.
    pub(super) fn pack(&self) -> Result<PathBuf> {
        let archive = self.0.with_extension("cpio");
        let mut find = Command::new("find")
            .arg(".")
            .current_dir(&self.0)
            .stdout(Stdio::piped())
            .spawn()?;
        let names = find.stdout.take().context("find has no output")?;
        let status = Command::new("cpio")
            .args(["--create", "--format=newc", "--quiet"])
            .current_dir(&self.0)
            .stdin(names)
            .stdout(fs::File::create(&archive)?)
            .status()
            .context("cannot run cpio: install the package cpio")?;
        ensure!(
            find.wait()?.success() && status.success(),
            "cannot pack {}",
            self.0.display()
        );
        Ok(archive)
    }
}
