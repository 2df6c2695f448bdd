//! Memory that is scarce for one process: a memory cgroup of its own (version 1 or 2) with a limit just above what
//! cannot be given back. The kernel then reclaims what it can all the time; what asks for much more is killed.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

const V1: &str = "/sys/fs/cgroup/memory";
const V2: &str = "/sys/fs/cgroup";
/// What a process may take beyond that.
const ROOM_BYTES: u64 = 8 << 20;

/// A cgroup. It is removed when this is dropped, if nobody is in it any more.
#[derive(Debug)]
pub(crate) struct MemoryGroup(PathBuf);

impl MemoryGroup {
    /// `None` if this machine, or whoever runs this, has no cgroups for memory.
    pub(crate) fn new(name: &str) -> Option<Self> {
        let name = format!("understudy-chaos-{}-{name}", std::process::id());
        [V1, V2].iter().find_map(|root| {
            let path = Path::new(root).join(&name);
            std::fs::create_dir(&path).ok()?;
            let group = Self(path);
            // A cgroup of version 2 may come without the controller.
            group.limit_file().exists().then_some(group)
        })
    }

    fn limit_file(&self) -> PathBuf {
        let limit = match self.0.starts_with(V1) {
            true => "memory.limit_in_bytes",
            false => "memory.max",
        };
        self.0.join(limit)
    }

    /// The process is in it from now on, with what it needs from now on.
    pub(crate) fn take(&self, pid: u32) -> Result<()> {
        std::fs::write(self.0.join("cgroup.procs"), pid.to_string())
            .context("cannot put a process into its cgroup")
    }

    pub(crate) fn set_scarce(&self, is_scarce: bool) -> Result<()> {
        let limit = match is_scarce {
            true => (self.anonymous_bytes()? + ROOM_BYTES).to_string(),
            false if self.0.starts_with(V1) => "-1".to_owned(),
            false => "max".to_owned(),
        };
        std::fs::write(self.limit_file(), &limit)
            .with_context(|| format!("cannot limit the memory of a cgroup to {limit}"))
    }

    /// What cannot be given back.
    fn anonymous_bytes(&self) -> Result<u64> {
        let stat = std::fs::read_to_string(self.0.join("memory.stat"))?;
        let lines = stat.lines();
        let bytes = lines.filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            matches!(key, "rss" | "anon" | "shmem").then(|| value.parse::<u64>().ok())?
        });
        Ok(bytes.sum())
    }
}

impl Drop for MemoryGroup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir(&self.0);
    }
}
