//! `cargo xtask guest-image`: a Linux guest from Debian's packages: kernel, initramfs, root file system.
//!
//! Nothing is mounted or installed and no root is needed. What is built lies in `target/guest-image/KEY`,
//! where the key follows from everything it is made of, so a second call only looks. Packages are downloaded
//! once and kept; `--fresh` asks Debian again. What must not be done here: run anything of the guest.

mod initramfs;
mod packages;
mod root;

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, bail, ensure};

/// Which of Debian's kernels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Flavor {
    /// `linux-image-cloud-amd64`: for virtual machines.
    Cloud,
    /// `linux-image-amd64`: for everything.
    Generic,
}

impl Flavor {
    fn package(self) -> &'static str {
        match self {
            Self::Cloud => "linux-image-cloud-amd64",
            Self::Generic => "linux-image-amd64",
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Cloud => "cloud",
            Self::Generic => "generic",
        }
    }
}

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

const USAGE: &str = "cargo xtask guest-image [--kernel cloud|generic] [--fresh]";
/// What is built from, below the repository.
const INPUTS: [&str; 3] = [
    "guest-images/linux",
    "guest-images/workload",
    "xtask/src/guest_image",
];
/// Time stamp of every file (2025-01-01), so that building again makes the same image.
const EPOCH: Duration = Duration::from_secs(1_735_689_600);
/// Programs the building calls, and the Debian package each is in.
const NEEDED: [(&str, &str); 5] = [
    ("mkfs.ext4", "e2fsprogs"),
    ("cpio", "cpio"),
    ("readelf", "binutils"),
    ("dpkg-deb", "dpkg"),
    ("apt-get", "apt"),
];

/// The command: builds what is missing and says where it is.
pub(crate) fn command(arguments: &[&str]) -> Result<()> {
    let mut flavor = Flavor::Cloud;
    let mut rest = arguments.iter();
    while let Some(argument) = rest.next() {
        match *argument {
            "--kernel" => {
                flavor = match rest.next().copied() {
                    Some("cloud") => Flavor::Cloud,
                    Some("generic") => Flavor::Generic,
                    other => bail!("--kernel is cloud or generic, not {other:?}\n{USAGE}"),
                }
            }
            "--fresh" => {
                let packages = directory().join("packages");
                if packages.exists() {
                    fs::remove_dir_all(&packages)?;
                }
                for old in built()? {
                    fs::remove_dir_all(old)?;
                }
            }
            other => bail!("unknown argument {other}\n{USAGE}"),
        }
    }
    let image = image(flavor)?;
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
    crate::test::install(&NEEDED)?;
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
    crate::root().join("target/guest-image")
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
        for path in files_below(&crate::root().join(input))? {
            path.strip_prefix(crate::root())?.hash(&mut hasher);
            if path.is_file() {
                fs::read(&path)?.hash(&mut hasher);
            }
        }
    }
    Ok(format!("{:016x}", hasher.finish()))
}

/// Everything below a directory, the directory too, in a fixed order. Symbolic links are not followed.
fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut found = vec![directory.to_path_buf()];
    let mut next = 0;
    while next < found.len() {
        let path = found[next].clone();
        next += 1;
        if path.symlink_metadata()?.is_dir() {
            let entries = fs::read_dir(&path)
                .with_context(|| format!("cannot read the directory {}", path.display()))?;
            for entry in entries {
                found.push(entry?.path());
            }
        }
    }
    found.sort();
    Ok(found)
}

/// A directory to build in, which goes away with the value, and the clock of the progress.
struct Work {
    path: PathBuf,
    begin: Instant,
}

impl Work {
    fn new(home: &Path) -> Result<Self> {
        let path = home.join(format!("work.{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path)?;
        let begin = Instant::now();
        Ok(Self { path, begin })
    }

    /// Says what is done now.
    fn step(&self, what: &str) {
        eprintln!("{:6.1} s  {what}", self.begin.elapsed().as_secs_f64());
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        // What is left is only in the way; the next build makes its own.
        let _ = fs::remove_dir_all(&self.path);
    }
}

/// Runs a program quietly and fails with what it said if it does.
fn quiet(command: &mut Command) -> Result<String> {
    let name = command.get_program().to_string_lossy().into_owned();
    let output = command
        .output()
        .with_context(|| format!("cannot run {name}"))?;
    ensure!(
        output.status.success(),
        "{name} failed ({}): {}",
        output.status,
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The lines of a list, without comments.
fn lines(list: &str) -> impl Iterator<Item = &str> {
    list.lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
}

/// Gives everything below a directory the same time stamp.
fn settle_times(directory: &Path) -> Result<()> {
    let when = UNIX_EPOCH + EPOCH;
    // The deepest first: nothing below a directory changes after it.
    for path in files_below(directory)?.iter().rev() {
        if path.is_symlink() {
            let stamp = format!("@{}", EPOCH.as_secs());
            quiet(Command::new("touch").args(["-h", "-d", &stamp]).arg(path))?;
            continue;
        }
        let file = fs::File::open(path)?;
        let times = fs::FileTimes::new().set_accessed(when).set_modified(when);
        file.set_times(times)
            .with_context(|| format!("cannot set the time of {}", path.display()))?;
    }
    Ok(())
}
