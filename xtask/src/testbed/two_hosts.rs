//! The testbed that scenarios act on: two hosts, the storage, the networks, and what is measured. Hosts are
//! kept from one scenario to the next where they are well.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use serde_json::Value;

use super::announcements::Announcements;
use super::guest::{self, Guest, Mode};
use super::host::{Host, LOGS};
use super::init;
use super::luck::Luck;
use super::network::{self, Network, Side};
use super::report::Measure;
use super::speakers::Speakers;
use super::storage::Storage;
use super::vmm::{self, Subcommand};
use super::vmm_binary;
use super::wait::{say, until};
use crate::debian::{Kernel, Tree};

const HOST_MODULES: [&str; 8] = [
    "kvm_amd",
    "virtio_pci",
    "virtio_net",
    "virtio_blk",
    "ext4",
    "tun",
    "bridge",
    "nfsv4",
];
const GUEST_BOOT: Duration = Duration::from_secs(300);
/// Attempts to boot both hosts so that each has measured its counter right.
const BOOTS_MAX: u32 = 5;
/// Further apart than this, `vmm` refuses: they are the same counter in truth.
const COUNTERS_DIFFER: f64 = 0.005;
/// For the first synchronisation and for repairs.
const SYNC: Duration = Duration::from_secs(300);
const TAKEOVER: Duration = Duration::from_secs(60);

/// See the [module documentation](self).
pub(super) struct Testbed {
    pub(super) luck: Luck,
    pub(super) directory: PathBuf,
    hosts: [Host; 2],
    storage: Storage,
    pub(super) speakers: Speakers,
    pub(super) announcements: Announcements,
    pub(super) web: Guest,
    pub(super) measures: Vec<Measure>,
    /// The scenario under way and how long each log was when it began.
    scenario: String,
    log_starts: Vec<(PathBuf, u64)>,
    /// The guest under protection and its vCPUs.
    guest: Option<(Guest, u8)>,
}

impl Testbed {
    /// Sets everything up but boots nothing.
    pub(super) fn new(directory: &Path, luck: Luck) -> Result<Self> {
        network::make()?;
        let kernel = Kernel::find(directory)?;
        let init = init::script(include_str!("init/two-hosts.sh"));
        let tree = Tree::new(directory, "cluster-host", &init)?;
        tree.modules(&kernel, &HOST_MODULES)?;
        vmm_binary::copy(&directory.join("vmm"), &tree)?;
        let initramfs = tree.pack()?;
        let host = |side| Host::new(side, &directory.join("hosts"), &kernel, &initramfs);
        Ok(Self {
            luck,
            directory: directory.to_owned(),
            hosts: [host(Side::A)?, host(Side::B)?],
            storage: Storage::start(directory)?,
            speakers: Speakers::listen(&directory.join("speakers.log"))?,
            announcements: Announcements::listen()?,
            web: guest::web(directory, &kernel)?,
            measures: Vec::new(),
            scenario: String::new(),
            log_starts: Vec::new(),
            guest: None,
        })
    }

    pub(super) fn host(&mut self, side: Side) -> &mut Host {
        &mut self.hosts[side as usize]
    }

    // ---- scenarios ----

    /// Begins a scenario: both hosts up, networks whole, no `vmm` anywhere, an empty shared directory.
    pub(super) fn begin(&mut self, name: &str) -> Result<()> {
        self.scenario = name.into();
        self.guest = None;
        self.log_starts = (self.hosts.iter())
            .flat_map(|host| LOGS.map(|log| host.log(log)))
            .map(|path| {
                let bytes = fs::metadata(&path).map_or(0, |found| found.len());
                (path, bytes)
            })
            .collect();
        self.heal_all()?;
        for host in &mut self.hosts {
            if !host.is_well() {
                host.power_off()?;
            }
        }
        self.boot_all()?;
        for host in &self.hosts {
            vmm::kill(host)?;
        }
        fs::create_dir_all(self.shared())?;
        Ok(())
    }

    /// Ends a scenario: keeps what was logged during it in `NAME/`.
    pub(super) fn end(&mut self) -> Result<()> {
        let kept = self.directory.join(&self.scenario);
        fs::create_dir_all(&kept)?;
        for (path, start) in &self.log_starts {
            let bytes = fs::read(path)?;
            let new = bytes.get(*start as usize..).unwrap_or_default();
            fs::write(kept.join(path.file_name().context("logs have names")?), new)?;
        }
        Ok(())
    }

    /// The scenario's part of the shared directory, as this side sees it.
    pub(super) fn shared(&self) -> PathBuf {
        self.storage.directory.join(&self.scenario)
    }

    /// The same, as hosts see it.
    pub(super) fn shared_in_hosts(&self) -> String {
        format!("/shared/{}", self.scenario)
    }

    /// Notes what a failover cost, as the side that took over has seen it.
    pub(super) fn measure(
        &mut self,
        what: impl Into<String>,
        failover: Value,
        gap: Option<Duration>,
    ) {
        self.measures.push(Measure {
            scenario: self.scenario.clone(),
            what: what.into(),
            failover,
            gap,
            resync_bytes: None,
        });
    }

    /// Adds to the last failover that was noted how long it took until the guest was protected again, and how
    /// much of its disks was sent for that.
    pub(super) fn repaired(&mut self, repair_ms: f64, resync_bytes: Option<u64>) {
        if let Some(measure) = self.measures.last_mut() {
            measure.failover["repair_ms"] = repair_ms.into();
            measure.resync_bytes = resync_bytes;
        }
    }

    // ---- hosts and networks ----

    /// Boots what is off, side by side.
    pub(super) fn boot_all(&mut self) -> Result<()> {
        for _ in 0..BOOTS_MAX {
            let off = self.hosts.iter().filter(|host| !host.is_on());
            let off: Vec<Side> = off.map(|host| host.side).collect();
            self.boot_off()?;
            let [a, b] = &self.hosts;
            let (a, b) = (a.counter_mhz()?, b.counter_mhz()?);
            if off.is_empty() || (a / b - 1.0).abs() < COUNTERS_DIFFER {
                return Ok(());
            }
            say(format_args!(
                "a host was stalled while it measured its counter ({a} and {b} MHz): booting again"
            ));
            off.iter()
                .try_for_each(|side| self.host(*side).power_off())?;
        }
        bail!("the hosts do not come up with counters of the same speed: this machine is too busy")
    }

    fn boot_off(&mut self) -> Result<()> {
        let off = self.hosts.iter_mut().filter(|host| !host.is_on());
        for host in off {
            say(format_args!("booting {}", host.side.name()));
            host.power_on()?;
        }
        self.hosts.iter_mut().try_for_each(|host| {
            if host.is_well() {
                Ok(())
            } else {
                host.await_boot()
            }
        })
    }

    pub(super) fn power_off(&mut self, side: Side) -> Result<()> {
        say(format_args!("power failure of {}", side.name()));
        self.host(side).power_off()
    }

    pub(super) fn freeze(&mut self, side: Side) -> Result<()> {
        say(format_args!("{} freezes", side.name()));
        self.host(side).freeze()
    }

    pub(super) fn thaw(&mut self, side: Side) -> Result<()> {
        say(format_args!("{} goes on", side.name()));
        self.host(side).thaw()
    }

    pub(super) fn cut(&mut self, network: Network, side: Side) -> Result<()> {
        say(format_args!(
            "{} is cut off the {} network",
            side.name(),
            network.name()
        ));
        network::cut(network, side)
    }

    pub(super) fn heal(&mut self, network: Network, side: Side) -> Result<()> {
        say(format_args!(
            "{} is back on the {} network",
            side.name(),
            network.name()
        ));
        network::heal(network, side)
    }

    fn heal_all(&self) -> Result<()> {
        for side in Side::BOTH {
            for network in Network::ALL {
                network::heal(network, side)?;
            }
        }
        Ok(())
    }

    // ---- the guest ----

    /// Runs the guest on host A with host B as its standby, and waits until it is up and protected.
    pub(super) fn protect(&mut self, guest: &Guest, vcpus: u8) -> Result<()> {
        self.guest = Some((guest.clone(), vcpus));
        self.place(guest)?;
        self.start(Side::B, Subcommand::Standby)?;
        self.start(Side::A, Subcommand::Primary)?;
        until("the guest's shell", GUEST_BOOT, || {
            self.check_runs(Side::A)?;
            let patience = Duration::from_secs(10);
            Ok(guest::shell("true", patience).ok())
        })?;
        say(format_args!(
            "{} guest with {vcpus} vCPUs is up",
            guest.name
        ));
        self.await_protected(Side::A)
    }

    /// Starts `vmm` on a host, for the guest that [`Testbed::protect`] has begun with.
    pub(super) fn start(&mut self, side: Side, subcommand: Subcommand) -> Result<()> {
        let directory = self.shared_in_hosts();
        let (guest, vcpus) = self.guest.as_ref().context("no guest yet")?;
        let host = &self.hosts[side as usize];
        vmm::start(host, subcommand, guest, *vcpus, &directory)
    }

    /// The host that failed comes back, and waits to become the standby.
    pub(super) fn rejoin(&mut self, side: Side) -> Result<()> {
        if self.host(side).is_well() {
            vmm::kill(self.host(side))?;
        } else {
            say(format_args!("{} comes back", side.name()));
            self.host(side).power_off()?;
            self.boot_all()?;
        }
        self.start(side, Subcommand::Standby)
    }

    pub(super) fn status(&self, side: Side) -> Result<Option<Value>> {
        vmm::status(&self.hosts[side as usize])
    }

    /// What went wrong inside the guest, as the hosts that can be asked tell it.
    pub(super) fn guest_alarms(&mut self) -> Vec<String> {
        let asked = self.hosts.iter_mut().filter_map(|host| {
            let status = host.is_well().then(|| vmm::status(host))?.ok()??;
            let alarm = status["guest"]["alarm"].as_str()?;
            Some(format!("{}: {alarm}", host.side.name()))
        });
        asked.collect()
    }

    /// Waits until the guest on this host would survive its loss.
    pub(super) fn await_protected(&self, side: Side) -> Result<()> {
        let mut last = Value::Null;
        let protected = until("the guest to be protected", SYNC, || {
            self.check_runs(side)?;
            last = self.status(side)?.unwrap_or_default();
            Ok((last["role"] == "primary" && last["protected"] == true).then_some(()))
        });
        protected.with_context(|| format!("{} says {last}", side.name()))?;
        say(format_args!("protected on {}", side.name()));
        Ok(())
    }

    /// Waits until this host has taken the guest over; returns `failover` of its status.
    pub(super) fn await_takeover(&self, side: Side) -> Result<Value> {
        self.await_takeover_at(side, vmm::CONTROL)
    }

    /// The same at this control socket.
    pub(super) fn await_takeover_at(&self, side: Side, control: &str) -> Result<Value> {
        let failover = until(&format!("{} to take over", side.name()), TAKEOVER, || {
            self.check_runs(side)?;
            let status = vmm::status_at(&self.hosts[side as usize], control)?.unwrap_or_default();
            Ok(status["failover"]
                .is_object()
                .then(|| status["failover"].clone()))
        })?;
        say(format_args!(
            "{} runs the guest: outage {:.0} ms ({})",
            side.name(),
            failover["outage_ms"].as_f64().unwrap_or(f64::NAN),
            failover["cause"].as_str().unwrap_or("?"),
        ));
        Ok(failover)
    }

    /// Waits until the `vmm` of this host has ended; returns its exit code and the end of its log.
    pub(super) fn await_end(&self, side: Side) -> Result<(i32, String)> {
        let host = &self.hosts[side as usize];
        let code = until("vmm to end", TAKEOVER, || vmm::exit_code(host))?;
        Ok((code, self.last_words(side)))
    }

    /// Fails if the `vmm` of this host has ended.
    pub(super) fn check_runs(&self, side: Side) -> Result<()> {
        if let Some(code) = vmm::exit_code(&self.hosts[side as usize])? {
            bail!(
                "vmm on {} has ended with {code}: {}",
                side.name(),
                self.last_words(side)
            );
        }
        Ok(())
    }

    fn last_words(&self, side: Side) -> String {
        let log = fs::read(self.hosts[side as usize].log("vmm")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }

    /// Puts what the guest is made of where the hosts look for it. New images on the hosts' own disks want
    /// the hosts off meanwhile.
    fn place(&mut self, guest: &Guest) -> Result<()> {
        let shared = self.shared();
        fs::copy(&guest.kernel, shared.join("kernel"))?;
        if let Some(initrd) = &guest.initrd {
            fs::copy(initrd, shared.join("initrd"))?;
        }
        let (on_shared, on_each): (Vec<_>, Vec<_>) =
            (guest.drives.iter()).partition(|drive| drive.mode == Mode::Shared);
        for drive in on_shared {
            fs::copy(&drive.image, shared.join(drive.file_name()))?;
        }
        if on_each.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = on_each.iter().map(|drive| drive.file_name()).collect();
        let files: Vec<(&Path, &str)> = (on_each.iter().zip(&names))
            .map(|(drive, name)| (drive.image.as_path(), name.as_str()))
            .collect();
        for host in &mut self.hosts {
            host.power_off()?;
            host.make_disk(&files)?;
        }
        self.boot_all()
    }

    /// Takes a drive's image from where `side` had it, after cutting that host's power. Returns a copy on this
    /// machine, for `e2fsck` and the like.
    pub(super) fn take_image(&mut self, side: Side, id: &str) -> Result<PathBuf> {
        let (guest, _) = self.guest.as_ref().context("no guest yet")?;
        let drive = guest.drives.iter().find(|drive| drive.id == id);
        let drive = drive.with_context(|| format!("no drive {id}"))?.clone();
        self.host(side).power_off()?;
        let kept = self.directory.join(&self.scenario);
        fs::create_dir_all(&kept)?;
        let copy = kept.join(format!("{}.{}", side.name(), drive.file_name()));
        match drive.mode {
            Mode::Shared => drop(fs::copy(self.shared().join(drive.file_name()), &copy)?),
            Mode::Replicated => {
                self.host(side).take_from_disk(&drive.file_name(), &copy)?;
            }
        }
        Ok(copy)
    }

    /// Fails if anybody but `side` has spoken as the guest since `mark`.
    pub(super) fn check_only_speaker(&self, side: Side, mark: usize) -> Result<()> {
        let speakers = self.speakers.since(mark)?;
        ensure!(
            speakers.iter().all(|speaker| *speaker == side),
            "the guest spoke from {speakers:?} after {} had taken over",
            side.name()
        );
        Ok(())
    }
}
