//! `cargo xtask guest-image`: a Linux guest from Debian's packages: kernel, initramfs, root file system.
//!
//! Nothing is mounted or installed and no root is needed. What is built lies in `target/guest-image/KEY`,
//! where the key follows from everything it is made of, so a second call only looks. Packages are downloaded
//! once and kept; `--fresh` asks Debian again. What must not be done here: run anything of the guest.

mod initramfs;
mod root;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::debian::{self, Flavor, Scratch, files_below};

/// A Linux guest, ready to boot. The files are shared by all who use them: boot from a copy of `rootfs`.
#[derive(Debug, Clone)]
pub(crate) struct Image {
    /// bzImage, as Debian has it.
    pub(crate) kernel: PathBuf,
    /// Initramfs that mounts `/dev/vda` and hands over.
    pub(crate) initrd: PathBuf,
    /// Raw, sparse ext4 image, without a partition table.
    pub(crate) rootfs: PathBuf,
}

/// What is built from, below the repository.
const INPUTS: [&str; 4] = [
    "guest-images/linux",
    "guest-images/workload",
    "xtask/src/debian",
    "xtask/src/guest_image",
];
/// Programs the building calls, and the Debian package each is in.
const NEEDED: [(&str, &str); 5] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("cpio", "cpio"),
    ("readelf", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
];

/// What is to be built.
#[derive(Debug, Args)]
pub(crate) struct ImageArgs {
    /// Which of Debian's kernels it has.
    #[arg(long, default_value = "cloud")]
    kernel: Flavor,
    /// Ask Debian for its packages again, and build everything anew.
    #[arg(long)]
    fresh: bool,
}

/// The command: builds what is missing and says where it is.
pub(crate) fn command(arguments: &ImageArgs) -> Result<()> {
    if arguments.fresh {
        debian::forget()?;
        for old in built()? {
            fs::remove_dir_all(old)?;
        }
    }
    let image = image(arguments.kernel)?;
    for (what, path) in [
        ("kernel", &image.kernel),
        ("initrd", &image.initrd),
        ("rootfs", &image.rootfs),
    ] {
        println!("{what} {}", path.display());
    }
    Ok(())
}

/// The Linux guest with this kernel; builds what is missing.
pub(crate) fn image(flavor: Flavor) -> Result<Image> {
    let home = directory().join(key()?);
    let kernel = home.join(flavor.name());
    let image = Image {
        kernel: kernel.join("vmlinuz"),
        initrd: kernel.join("initrd.cpio"),
        rootfs: home.join("rootfs.ext4"),
    };
    if image.rootfs.exists() && kernel.exists() {
        return Ok(image);
    }
    debian::install(&NEEDED)?;
    fs::create_dir_all(&home)?;
    let work = Work::new(&home)?;
    if !image.rootfs.exists() {
        root::build(&work, &image.rootfs)?;
    }
    if !kernel.exists() {
        initramfs::build(&work, flavor, &kernel)?;
    }
    for old in built()? {
        if old != home {
            fs::remove_dir_all(&old)?;
        }
    }
    work.step("done");
    Ok(image)
}

/// Where everything is.
fn directory() -> PathBuf {
    crate::workspace::root().join("target/guest-image")
}

/// The images that are there, of all keys.
fn built() -> Result<Vec<PathBuf>> {
    let Ok(entries) = fs::read_dir(directory()) else {
        return Ok(Vec::new());
    };
    let mut found = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.len() == 16 && name.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            found.push(path);
        }
    }
    Ok(found)
}

/// Follows from the contents of all inputs.
fn key() -> Result<String> {
    let mut hasher = DefaultHasher::new();
    for input in INPUTS {
        for path in files_below(&crate::workspace::root().join(input))? {
            path.strip_prefix(crate::workspace::root())?
                .hash(&mut hasher);
            if path.is_file() {
                fs::read(&path)?.hash(&mut hasher);
            }
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Where to build, and the clock of the progress.
struct Work {
    scratch: Scratch,
    begin: Instant,
}

impl Work {
    fn new(home: &Path) -> Result<Self> {
        let scratch = Scratch::new(home)?;
        let begin = Instant::now();
        Ok(Self { scratch, begin })
    }

    fn path(&self) -> &Path {
        self.scratch.path()
    }

    /// Says what is done now.
    fn step(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.begin.elapsed().as_secs_f64());
    }
}

/// The lines of a list, without comments.
fn lines(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}
