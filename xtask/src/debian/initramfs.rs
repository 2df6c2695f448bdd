//! An initramfs: busybox, kernel modules, an init script, and whatever else is put in. What must not be done
//! here: run anything in it, or take anything from the machine it is built on.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::kernel::Kernel;
use super::{files_below, packages, settle, store};

/// Unpacks busybox, which every initramfs has. After that, making one needs no network.
pub(crate) fn provide_busybox() -> Result<PathBuf> {
    let unpacked = store().join("busybox");
    packages::provide(&["busybox-static"], &unpacked)?;
    Ok(unpacked.join("bin/busybox"))
}

/// A directory that becomes an initramfs.
pub(crate) struct Tree(PathBuf);

impl Tree {
    /// One with nothing but busybox and this script as its init, in `NAME` below a directory.
    pub(crate) fn new(below: &Path, name: &str, init: &str) -> Result<Self> {
        let tree = Self(below.join(name));
        if tree.0.exists() {
            fs::remove_dir_all(&tree.0)?;
        }
        for directory in ["bin", "dev", "proc", "sys", "tmp"] {
            fs::create_dir_all(tree.0.join(directory))?;
        }
        tree.copy(&provide_busybox()?, "bin/busybox")?;
        symlink("busybox", tree.0.join("bin/sh"))?;
        tree.write("init", init)?;
        fs::set_permissions(tree.0.join("init"), fs::Permissions::from_mode(0o755))?;
        Ok(tree)
    }

    /// Puts modules in `/modules`, named in `/modules/order` so that each comes after what it needs.
    pub(crate) fn modules(&self, kernel: &Kernel, wanted: &[&str]) -> Result<()> {
        self.modules_in(kernel, wanted, "order")
    }

    /// The same, named in another list below `/modules`.
    pub(crate) fn modules_in(&self, kernel: &Kernel, wanted: &[&str], list: &str) -> Result<()> {
        let mut order = String::new();
        for file in kernel.modules(wanted)? {
            let name = file.file_name().context("a module has a name")?;
            let name = name.to_string_lossy();
            self.copy(&file, format!("modules/{name}"))?;
            order.push_str(&format!("{name}\n"));
        }
        self.write(Path::new("modules").join(list), &order)
    }

    pub(crate) fn directory(&self, path: &str) -> Result<()> {
        Ok(fs::create_dir_all(self.0.join(path))?)
    }

    pub(crate) fn write(&self, path: impl AsRef<Path>, text: &str) -> Result<()> {
        Ok(fs::write(self.room_for(path)?, text)?)
    }

    pub(crate) fn copy(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        fs::copy(from, self.room_for(to)?)
            .with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    fn room_for(&self, path: impl AsRef<Path>) -> Result<PathBuf> {
        let path = self.0.join(path);
        if let Some(parent) = path.parent() {
            fs::create_dir_all(parent)?;
        }
        Ok(path)
    }

    /// Packs it into an uncompressed cpio archive beside it, always the same.
    pub(crate) fn pack(&self) -> Result<PathBuf> {
        settle(&self.0)?;
        let mut names = String::new();
        for path in files_below(&self.0)? {
            let name = path.strip_prefix(&self.0)?.to_string_lossy();
            names += if name.is_empty() { "." } else { &name };
            names.push('\n');
        }
        let archive = self.0.with_extension("cpio");
        let mut cpio = Command::new("cpio")
            .args(["--create", "--format=newc", "--quiet", "--reproducible"])
            .arg("--owner=0:0")
            .current_dir(&self.0)
            .stdin(Stdio::piped())
            .stdout(fs::File::create(&archive)?)
            .spawn()
            .context("cannot run cpio: install the package cpio")?;
        // Dropped behind the names, so that cpio sees their end.
        let mut input = cpio.stdin.take().context("cpio takes no names")?;
        input.write_all(names.as_bytes())?;
        drop(input);
        let status = cpio.wait()?;
        ensure!(
            status.success(),
            "cannot pack {} ({status})",
            self.0.display()
        );
        Ok(archive)
    }
}
