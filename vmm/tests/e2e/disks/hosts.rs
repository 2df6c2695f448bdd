//! Two hosts whose guest writes its disk, either of which can be primary or standby, over and over.
//!
//! There is no network: what the guest tells on its console leaves only with the epoch behind it, like a
//! frame. So a write that it says was flushed is one that somebody was told of.

use std::path::{Path, PathBuf};

use understudy_replication::disk::DiskMode;
use understudy_replication::runtime::{Side, Status};
use understudy_vmm::local_cluster::{GuestDiskProgress, VmmProcess, WorkloadDisk};

use crate::support::{DEADLINE, TIMEOUT_MS, binary, wait_for};

/// Blocks of 4 KiB that the guest uses.
pub(crate) const BLOCKS: u32 = 256;
/// The images are larger: what a synchronisation saves shows.
pub(crate) const IMAGE_BYTES: u64 = 32 << 20;
/// What a new standby's image is full of: nothing that was there may stay.
const RUBBISH: u8 = 0xaa;
/// Words of the guest that count as progress.
const FLUSHES: u64 = 3;
const FLUSH_EVERY: u64 = 8;

/// Number of a host.
pub(crate) const A: usize = 0;
/// Number of the other.
pub(crate) const B: usize = 1;
const NAMES: [&str; 2] = ["a", "b"];

/// Two hosts.
pub(crate) struct Disks {
    pub(crate) directory: tempfile::TempDir,
    pub(crate) hosts: [Option<VmmProcess>; 2],
    mode: DiskMode,
    starts: usize,
    /// The most that the guest said it had flushed, over all its hosts.
    flushed: u64,
}

impl Disks {
    /// Makes the images; starts nothing.
    pub(crate) fn new(mode: DiskMode) -> Self {
        let disks = Self {
            directory: tempfile::tempdir().unwrap(),
            hosts: [None, None],
            mode,
            starts: 0,
            flushed: 0,
        };
        WorkloadDisk::create(&disks.image_path(A), IMAGE_BYTES, BLOCKS).unwrap();
        if mode == DiskMode::Replicated {
            std::fs::write(disks.image_path(B), vec![RUBBISH; IMAGE_BYTES as usize]).unwrap();
        }
        disks
    }

    /// A protected guest on host [`A`] that has begun to write.
    pub(crate) fn start(mode: DiskMode) -> Self {
        let mut disks = Self::new(mode);
        disks.start_standby(B);
        disks.start_primary(A, &[]);
        disks.await_protected(A);
        disks.await_progress(A);
        disks
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub(crate) fn image_path(&self, host: usize) -> PathBuf {
        match self.mode {
            DiskMode::Replicated => self.path(&format!("{}.disk", NAMES[host])),
            DiskMode::Shared => self.path("shared.disk"),
        }
    }

    pub(crate) fn image(&self, host: usize) -> WorkloadDisk {
        WorkloadDisk::at(&self.image_path(host), BLOCKS)
    }

    pub(crate) fn host(&mut self, host: usize) -> &mut VmmProcess {
        self.hosts[host].as_mut().expect("this host is up")
    }

    /// What the guest has told so far to have flushed.
    pub(crate) fn flushed(&self) -> u64 {
        self.flushed
    }

    pub(crate) fn start_primary(&mut self, host: usize, further: &[&str]) {
        self.start_host("primary", host, &binary(), further);
    }

    /// With another program as `vmm`, and further arguments.
    pub(crate) fn start_primary_with(&mut self, host: usize, program: &Path, further: &[&str]) {
        self.start_host("primary", host, program, further);
    }

    pub(crate) fn start_standby(&mut self, host: usize) {
        self.start_standby_with(host, &binary(), &[]);
    }

    /// With another program as `vmm`, and further arguments.
    pub(crate) fn start_standby_with(&mut self, host: usize, program: &Path, further: &[&str]) {
        self.start_host("standby", host, program, further);
        // A primary may be there already.
        self.await_status(host, "listening", |status| status.side == Side::Standby);
    }

    /// Flags given again in `further` replace the usual ones.
    fn start_host(&mut self, role: &str, host: usize, program: &Path, further: &[&str]) {
        let channel = |host: usize| format!("unix:{}", self.path(NAMES[host]).display());
        let shared = match self.mode {
            DiskMode::Replicated => "",
            DiskMode::Shared => ",shared",
        };
        let usual = [
            ("--name", "guest".to_owned()),
            ("--node", NAMES[host].to_owned()),
            ("--listen", channel(host)),
            ("--backup", channel(1 - host)),
            ("--arbiter", self.path("arbiter").display().to_string()),
            ("--memory-mib", "64".to_owned()),
            ("--timeout-ms", TIMEOUT_MS.to_owned()),
            (
                "--drive",
                format!("path={}{shared}", self.image_path(host).display()),
            ),
            ("--cmdline", cmdline()),
        ];
        let mut arguments = vec![role.to_owned()];
        for (flag, value) in usual {
            if !further.contains(&flag) {
                arguments.extend([flag.to_owned(), value]);
            }
        }
        arguments.extend(further.iter().map(ToString::to_string));
        // Each start has its own log and console.
        self.starts += 1;
        let name = format!("{}-{}", NAMES[host], self.starts);
        let started = VmmProcess::start(program, &name, self.directory.path(), &arguments).unwrap();
        self.hosts[host] = Some(started);
    }

    pub(crate) fn await_status(
        &mut self,
        host: usize,
        what: &str,
        wanted: impl Fn(&Status) -> bool,
    ) -> Status {
        self.host(host)
            .await_status(what, DEADLINE, wanted)
            .unwrap()
    }

    pub(crate) fn await_protected(&mut self, host: usize) -> Status {
        self.await_status(host, "protected", |status| status.protected)
    }

    pub(crate) fn await_promoted(&mut self, host: usize) {
        self.await_status(host, "promoted", |status| status.failover.is_some());
    }

    /// What the guest has last said on this host.
    pub(crate) fn words(&mut self, host: usize) -> Option<GuestDiskProgress> {
        let console = self.host(host).console();
        let words =
            GuestDiskProgress::latest(&console).unwrap_or_else(|bad| panic!("{bad}\n{console}"));
        self.flushed = self.flushed.max(words.map_or(0, |words| words.flushed));
        words
    }

    /// Waits until the guest, on this host, has flushed a good deal more than anybody was told of until now.
    pub(crate) fn await_progress(&mut self, host: usize) {
        self.words(host);
        let enough = self.flushed + FLUSHES * FLUSH_EVERY;
        wait_for("progress of the guest's disk", || {
            self.words(host).filter(|words| words.flushed >= enough)
        });
    }

    /// The host loses power. What its guest had told is known afterwards.
    pub(crate) fn kill(&mut self, host: usize) {
        self.host(host).kill().unwrap();
        self.words(host);
        self.hosts[host] = None;
    }

    /// Waits until a host has ended by itself, and returns its exit code and log.
    pub(crate) fn await_end(&mut self, host: usize) -> (Option<i32>, String) {
        let code = self.host(host).await_exit(DEADLINE).unwrap().code();
        self.words(host);
        let log = self.host(host).log();
        self.hosts[host] = None;
        (code, log)
    }
}

pub(crate) fn cmdline() -> String {
    format!(
        "workload=disk disk.blocks={BLOCKS} disk.rate=0 disk.flush_every={FLUSH_EVERY} disk.log_ms=20"
    )
}

/// What the last synchronisation of the disks copied.
pub(crate) fn synchronised_bytes(status: &Status) -> u64 {
    status.disks.sync.as_ref().map_or(0, |sync| sync.bytes)
}
