//! Directories that always become the same bytes, and directories to work in. What must not be done here:
//! follow a symbolic link out of one.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};

use super::quiet;

/// Time stamp of every file (2025-01-01), so that building again makes the same image.
pub(crate) const EPOCH: Duration = Duration::from_secs(1_735_689_600);

/// A directory to work in, which goes away with the value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    /// An empty one of this process, in `parent`.
    pub(crate) fn new(parent: &Path) -> Result<Self> {
        let path = parent.join(format!("work.{}", std::process::id()));
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        fs::create_dir_all(&path).with_context(|| format!("cannot make {}", path.display()))?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left is only in the way; the next one is another.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Everything below a directory, the directory too, in a fixed order. Symbolic links are not followed.
pub(crate) fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
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

/// Makes modes and times of everything below a directory the same wherever and whenever it is built.
pub(crate) fn settle(directory: &Path) -> Result<()> {
    let modes = ["-R", "u+rwX,go+rX,go-w"];
    quiet(Command::new("chmod").args(modes).arg(directory))?;
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    #[test]
    fn a_settled_directory_says_nothing_of_when_and_by_whom_it_was_made() {
        let scratch = Scratch::new(&std::env::temp_dir().join("xtask-files")).unwrap();
        let tree = scratch.path().join("tree");
        fs::create_dir_all(tree.join("bin")).unwrap();
        symlink("/nowhere", tree.join("link")).unwrap();
        for (name, mode) in [("bin/run", 0o700), ("text", 0o666)] {
            fs::write(tree.join(name), name).unwrap();
            fs::set_permissions(tree.join(name), fs::Permissions::from_mode(mode)).unwrap();
        }
        settle(&tree).unwrap();
        let found = files_below(&tree).unwrap();
        let seen: Vec<_> = found
            .iter()
            .map(|path| {
                let about = path.symlink_metadata().unwrap();
                assert_eq!(about.mtime(), 1_735_689_600, "{}", path.display());
                let name = path.strip_prefix(&tree).unwrap().to_str().unwrap();
                (name.to_owned(), about.mode() & 0o777)
            })
            .collect();
        let expected = [
            ("", 0o755),
            ("bin", 0o755),
            ("bin/run", 0o755),
            ("link", 0o777),
            ("text", 0o644),
        ];
        assert_eq!(seen, expected.map(|(name, mode)| (name.to_owned(), mode)));
    }
}
