//! Two hosts, what they use, and a service manager for each: a process that ends is started again as a standby. If the
//! guest's memory is gone and nobody runs the guest, processes are started as the primary, as a person would do; they find
//! out which one is.
//!
//! What must not be done here: judge.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use understudy_replication::runtime::{Side as Part, Status};
use understudy_vmm::local_cluster::VmmProcess;

use crate::flood::Flood;
use crate::network::{GUEST, GUEST_MAC, Network, Side, Way};
use crate::pressure::MemoryGroup;
use crate::storage::Storage;

/// Blocks of 4 KiB that the guest's disk workload uses. So many that a file system without room is noticed: most are
/// not written yet.
pub(crate) const DISK_BLOCKS: u32 = 1024;
const IMAGE_BYTES: u64 = DISK_BLOCKS as u64 * 4096;
/// Room for an image, its map, a journal and the ext4 journal.
const STORAGE_MIB: u32 = 96;
const ARBITER_MIB: u32 = 8;
const WORKLOAD: &str = "workload=stream,counter,disk stream.rate=262144 disk.rate=100 disk.flush_every=8 disk.log_ms=20";
/// A service manager's pause before it starts a process again.
const RESTART: Duration = Duration::from_millis(300);
/// A host whose process is started more often does not work.
const STARTS_MAX: usize = 20;
/// How often somebody asks for the status.
const LOOK: Duration = Duration::from_millis(50);

/// The guest of a pair.
#[derive(Debug, Clone)]
pub(crate) struct Guest {
    pub(crate) memory_mib: u64,
    /// What it does, as its command line says.
    pub(crate) workload: String,
}

impl Default for Guest {
    fn default() -> Self {
        Self {
            memory_mib: 64,
            workload: format!("{WORKLOAD} disk.blocks={DISK_BLOCKS}"),
        }
    }
}

/// What ran on one host.
#[derive(Debug)]
struct Host {
    process: Option<VmmProcess>,
    /// Processes started so far.
    starts: usize,
    ended: Option<Instant>,
    is_frozen: bool,
    /// It lost its power and has not got it back.
    is_down: bool,
    /// The process was killed by this program.
    is_killed: bool,
    group: Option<MemoryGroup>,
    /// Consoles of all processes.
    consoles: Vec<PathBuf>,
}

/// The guest's memory may be gone.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loss {
    pub(crate) why: &'static str,
    /// The generation that was the last one then.
    generation: usize,
}

/// See the [module documentation](self). What hangs is undone first when this is dropped: nothing that hangs can be
/// killed.
#[derive(Debug)]
pub(crate) struct World {
    storage: [Storage; 2],
    arbiter: Storage,
    pub(crate) flood: Option<Flood>,
    hosts: [Host; 2],
    pub(crate) network: Arc<Network>,
    directory: PathBuf,
    vmm: PathBuf,
    guest: Guest,
    /// Further options of each process.
    options: Vec<String>,
    looked: Instant,
    /// The latest generation in which the guest was protected.
    protected: u64,
    pub(crate) lost: Option<Loss>,
}

impl World {
    /// Makes everything in `directory`; starts nothing. All processes get `options`.
    pub(crate) fn new(
        directory: &Path,
        vmm: &Path,
        guest: Guest,
        options: &[String],
    ) -> Result<Self> {
        let storage = |name: &str, mib| Storage::new(&directory.join(name), mib);
        let host = |side: Side| {
            let name = directory.file_name().unwrap_or_default().to_string_lossy();
            Host {
                process: None,
                starts: 0,
                ended: None,
                is_frozen: false,
                is_down: false,
                is_killed: false,
                group: MemoryGroup::new(&format!("{name}-{}", side.letter())),
                consoles: Vec::new(),
            }
        };
        let world = Self {
            storage: [storage("a", STORAGE_MIB)?, storage("b", STORAGE_MIB)?],
            arbiter: storage("arbiter", ARBITER_MIB)?,
            flood: None,
            hosts: Side::BOTH.map(host),
            network: Arc::new(Network::new()?),
            directory: directory.into(),
            vmm: vmm.into(),
            guest,
            options: options.to_vec(),
            looked: Instant::now(),
            protected: 0,
            lost: None,
        };
        std::fs::create_dir(world.arbiter.path("record")).context("cannot make the arbiter")?;
        world.set_arbiter_away(false)?;
        for side in Side::BOTH {
            let image = std::fs::File::create(world.image(side)).context("cannot make an image")?;
            image.set_len(IMAGE_BYTES)?;
        }
        Ok(world)
    }

    pub(crate) fn image(&self, side: Side) -> PathBuf {
        self.storage[side as usize].path("disk")
    }

    pub(crate) fn storage(&mut self, side: Side) -> &mut Storage {
        &mut self.storage[side as usize]
    }

    pub(crate) fn arbiter(&mut self) -> &mut Storage {
        &mut self.arbiter
    }

    /// The arbiter's path is a link, so that it can be turned also while what it leads to hangs.
    pub(crate) fn set_arbiter_away(&self, is_away: bool) -> Result<()> {
        let to = match is_away {
            true => {
                let empty = self.directory.join("empty");
                std::fs::create_dir_all(&empty)?;
                empty
            }
            false => self.arbiter.path("record"),
        };
        let turned = self.directory.join("turned");
        std::os::unix::fs::symlink(to, &turned)?;
        std::fs::rename(turned, self.arbiter_link()).context("cannot turn the arbiter's link")
    }

    fn arbiter_link(&self) -> PathBuf {
        self.directory.join("arbiter-link")
    }

    pub(crate) fn set_memory_scarce(&self, side: Side, is_scarce: bool) -> Result<()> {
        let group = self.hosts[side as usize].group.as_ref();
        group.map_or(Ok(()), |group| group.set_scarce(is_scarce))
    }

    /// Starts a host's process.
    pub(crate) fn start(&mut self, side: Side) -> Result<()> {
        let arguments = self.arguments(side);
        let host = &mut self.hosts[side as usize];
        ensure!(
            host.starts < STARTS_MAX,
            "host {} does not stay up",
            side.letter()
        );
        host.starts += 1;
        let name = format!("{}-{}", side.letter(), host.starts);
        let process = VmmProcess::start(Path::new("setpriv"), &name, &self.directory, &arguments)?;
        if let Some(group) = &host.group {
            group.take(process.pid())?;
        }
        host.consoles
            .push(self.directory.join(format!("{name}.console")));
        host.process = Some(process);
        host.ended = None;
        Ok(())
    }

    fn arguments(&self, side: Side) -> Vec<String> {
        let is_first = side == Side::A && self.hosts[side as usize].starts == 0;
        let nobody_has_it = |lost: &Loss| self.granted().len() == lost.generation;
        let part = match is_first || self.lost.as_ref().is_some_and(nobody_has_it) {
            true => "primary",
            false => "standby",
        };
        let other = side.other();
        let beat = format!("{}={}", Way::Beat.endpoint(side), Way::Beat.endpoint(other));
        let mut arguments = self.network.words(side);
        arguments.extend([self.vmm.display().to_string(), part.into()]);
        for (flag, value) in [
            ("--name", "guest".into()),
            ("--node", side.letter().into()),
            ("--listen", Way::Channel.endpoint(side)),
            ("--backup", Way::Channel.endpoint(other)),
            ("--heartbeat", beat),
            ("--arbiter", self.arbiter_link().display().to_string()),
            ("--kernel", "builtin".into()),
            ("--memory-mib", self.guest.memory_mib.to_string()),
            (
                "--drive",
                format!("path={},on-error=wait", self.image(side).display()),
            ),
            ("--net", format!("tap=tap0,mac={GUEST_MAC}")),
            (
                "--cmdline",
                format!("{} gateway=10.77.0.1 ip={GUEST}/24", self.guest.workload),
            ),
        ] {
            arguments.extend([flag.to_owned(), value]);
        }
        arguments.extend_from_slice(&self.options);
        arguments
    }

    /// Its storage is gone, or back. Who had files open there cannot use them any more, so a process that lives is killed in
    /// the end; it is started again once its storage is mounted.
    pub(crate) fn set_storage_gone(&mut self, side: Side, is_gone: bool) -> Result<()> {
        if !is_gone {
            self.end_process(side)?;
        }
        self.storage(side).set_gone(is_gone)
    }

    /// SIGKILL, and no power. The process may be gone later: not while it waits for storage that hangs.
    pub(crate) fn kill(&mut self, side: Side) -> Result<()> {
        self.hosts[side as usize].is_down = true;
        self.end_process(side)
    }

    fn end_process(&mut self, side: Side) -> Result<()> {
        let other_is_gone = self.is_gone(side.other());
        let host = &mut self.hosts[side as usize];
        host.is_frozen = false;
        if host.process.is_none() {
            return Ok(());
        }
        host.is_killed = true;
        self.signal(side, Signal::SIGKILL)?;
        self.note_loss(side, other_is_gone);
        Ok(())
    }

    /// SIGTERM. The process has handed its guest over when it ends.
    pub(crate) fn stop(&mut self, side: Side) -> Result<()> {
        self.hosts[side as usize].is_down = true;
        self.signal(side, Signal::SIGTERM)
    }

    /// Power is back; the process is started again as soon as the old one is gone.
    pub(crate) fn power_on(&mut self, side: Side) {
        self.hosts[side as usize].is_down = false;
    }

    /// SIGSTOP or SIGCONT.
    pub(crate) fn set_frozen(&mut self, side: Side, is_frozen: bool) -> Result<()> {
        let host = &mut self.hosts[side as usize];
        if host.is_frozen == is_frozen || host.process.is_none() || host.is_down {
            return Ok(());
        }
        host.is_frozen = is_frozen;
        self.signal(
            side,
            if is_frozen {
                Signal::SIGSTOP
            } else {
                Signal::SIGCONT
            },
        )
    }

    fn signal(&self, side: Side, signal: Signal) -> Result<()> {
        if let Some(process) = &self.hosts[side as usize].process {
            // Not waited for yet: the number cannot have been given to another process.
            kill(Pid::from_raw(process.pid().cast_signed()), signal)?;
        }
        Ok(())
    }

    fn is_gone(&self, side: Side) -> bool {
        let host = &self.hosts[side as usize];
        host.is_down || host.process.is_none()
    }

    /// Whether no process is left, and none will be started.
    pub(crate) fn is_over(&self) -> bool {
        let mut hosts = self.hosts.iter();
        hosts.all(|host| host.is_down && host.process.is_none())
    }

    /// A process was killed: does anybody still have the guest's memory? The other host has it, if it lives, unless the guest
    /// ran here in a generation in which nobody protected it.
    fn note_loss(&mut self, killed: Side, other_is_gone: bool) {
        let granted = self.granted();
        let ran_alone = granted.last() == Some(&killed) && self.protected < granted.len() as u64;
        let why = match (ran_alone, other_is_gone) {
            (true, _) => "the only process that had the guest was killed",
            (false, true) => "both processes were killed",
            (false, false) => return,
        };
        self.lost = Some(Loss {
            why,
            generation: granted.len(),
        });
    }

    /// Notices processes that have ended, and starts them again where nothing speaks against it; looks who is protected.
    pub(crate) fn supervise(&mut self) -> Result<()> {
        for side in Side::BOTH {
            let host = &mut self.hosts[side as usize];
            if let Some(process) = &mut host.process
                && let Ok(exit) = process.await_exit(Duration::ZERO)
            {
                let was_killed = std::os::unix::process::ExitStatusExt::signal(&exit) == Some(9);
                let by_us = std::mem::take(&mut host.is_killed);
                host.process = None;
                host.is_frozen = false;
                host.ended = Some(Instant::now());
                if was_killed && !by_us {
                    // The kernel, for want of memory.
                    let other_is_gone = self.is_gone(side.other());
                    self.note_loss(side, other_is_gone);
                }
            }
            if self.hosts[side as usize].process.is_none() {
                self.storage(side).mount_again()?;
            }
            let host = &self.hosts[side as usize];
            let is_due = host.ended.is_some_and(|at| at.elapsed() >= RESTART);
            if is_due && !host.is_down && self.storage[side as usize].is_well() {
                self.start(side)?;
            }
        }
        if self.looked.elapsed() >= LOOK {
            self.looked = Instant::now();
            self.primary();
        }
        Ok(())
    }

    /// Who runs the guest, protected, in the latest generation.
    pub(crate) fn primary(&mut self) -> Option<Side> {
        let latest = self.granted().len() as u64;
        let protects = |side: &Side| {
            let status = self.status(*side);
            status.is_some_and(|it| {
                it.side == Part::Primary && it.protected && it.generation == latest
            })
        };
        let primary = Side::BOTH.into_iter().find(protects)?;
        self.protected = latest;
        Some(primary)
    }

    /// A host's status, unless it could not answer.
    pub(crate) fn status(&self, side: Side) -> Option<Status> {
        let host = &self.hosts[side as usize];
        let process = host
            .process
            .as_ref()
            .filter(|_| !host.is_frozen && !host.is_down)?;
        process.status()
    }

    /// Whom the arbiter granted the generations, the first one first.
    pub(crate) fn granted(&self) -> Vec<Side> {
        let record = self.arbiter.path("record");
        let holder = |generation: u64| {
            let grant = std::fs::read(record.join(generation.to_string())).ok()?;
            let grant: serde_json::Value = serde_json::from_slice(&grant).ok()?;
            let name = grant["holder"].as_str()?;
            Side::BOTH
                .into_iter()
                .find(|side| name.starts_with(side.letter()))
        };
        (1..).map_while(holder).collect()
    }

    /// What the guest said on all consoles.
    pub(crate) fn consoles(&self) -> Vec<String> {
        let consoles = self.hosts.iter().flat_map(|host| &host.consoles);
        let text = |path: &PathBuf| {
            String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
        };
        consoles.map(text).collect()
    }

    /// What all processes logged, each with its name.
    pub(crate) fn logs(&self) -> Vec<(String, String)> {
        let consoles = self.hosts.iter().flat_map(|host| &host.consoles);
        let logs = consoles.map(|console| {
            let name = console.file_stem().unwrap_or_default().to_string_lossy();
            let log = std::fs::read(console.with_extension("log")).unwrap_or_default();
            (
                name.into_owned(),
                String::from_utf8_lossy(&log).into_owned(),
            )
        });
        logs.collect()
    }
}
