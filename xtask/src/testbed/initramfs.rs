//! The initramfs of the emulated host, and that of the guest inside it: busybox, modules, an init script.
//! What must not be done here: run anything in them.

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use super::Kernel;

const BUSYBOX: &str = "/bin/busybox";
const HOST_INIT: &str = include_str!("host-init.sh");
const GUEST_INIT: &str = include_str!("guest-init.sh");
const HOST_MODULES: [&str; 3] = [
    "virt/lib/irqbypass.ko",
    "arch/x86/kvm/kvm.ko",
    "arch/x86/kvm/kvm-amd.ko",
];
const GUEST_MODULES: [&str; 4] = [
    "drivers/virtio/virtio_ring.ko",
    "drivers/virtio/virtio.ko",
    "drivers/virtio/virtio_mmio.ko",
    "drivers/char/hw_random/virtio-rng.ko",
];

/// Makes the host's initramfs, with `vmm`, the kernel and the guest's initramfs in it.
pub(super) fn host(directory: &Path, kernel: &Kernel, vmm: &Path) -> Result<PathBuf> {
    let guest = Tree::new(
        directory,
        "guest",
        GUEST_INIT,
        &kernel.modules,
        &GUEST_MODULES,
    )?
    .pack()?;
    let host = Tree::new(directory, "host", HOST_INIT, &kernel.modules, &HOST_MODULES)?;
    host.copy(vmm, "bin/vmm")?;
    host.copy(&kernel.image, "guest/bzImage")?;
    host.copy(&guest, "guest/initrd")?;
    host.pack()
}

/// A directory that becomes an initramfs.
struct Tree(PathBuf);

impl Tree {
    fn new(below: &Path, name: &str, init: &str, modules: &Path, wanted: &[&str]) -> Result<Self> {
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
        for module in wanted {
            let file = Path::new(module)
                .file_name()
                .context("a module has a name")?;
            tree.copy(&modules.join(module), Path::new("modules").join(file))?;
        }
        let script = tree.0.join("init");
        fs::write(&script, init)?;
        fs::set_permissions(&script, fs::Permissions::from_mode(0o755))?;
        Ok(tree)
    }

    fn copy(&self, from: &Path, to: impl AsRef<Path>) -> Result<()> {
        fs::copy(from, self.0.join(to))
            .with_context(|| format!("cannot copy {}", from.display()))?;
        Ok(())
    }

    /// Packs it into an uncompressed cpio archive beside it.
    fn pack(&self) -> Result<PathBuf> {
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
