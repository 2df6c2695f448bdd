//! Creates the devices that a configuration asks for, and attaches them.
//!
//! Their order is fixed: reset port, power switch, power button, panic port, watchdog, console, network devices
//! and disks as configured, random numbers. It decides addresses, interrupts and the order of saving, so both
//! hosts must agree on it; the fingerprint says if they do not.
//!
//! What must not be done here: anything a device could do on its own.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use understudy_replication::disk::{DiskLimits, DiskMode, DiskSet, DiskSpec};
use understudy_replication::output::ConsoleSink;

use super::attach::{AttachError, Attached, Attachment, Health, Place};
use super::builder::MachineBuilder;
use super::config::{
    ConfigError, Console, Discovery, DriveConfig, DriveKind, NetBackend, NetConfig, Start,
};
use super::{Machine, MachineEvent, MachineFault, Networks, OnError, OnPanic, OnWatchdog};
use crate::boot::{Hardware, MmioDevice, PortDevice, PowerRegisters, Watchdog};
use crate::devices::pvpanic::{self, Panic};
use crate::devices::switch::{self, Kind, PowerSwitch, Switch};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::blk::{
    ANSWER_EVENT, Alarm, BlkDevice, DiskNews, ID_BYTES_MAX, Image, ImageError, Medium,
};
use crate::devices::virtio::mmio::{MMIO_BYTES, MmioTransport};
use crate::devices::virtio::net::NetDevice;
use crate::devices::virtio::net::backend::{Backend, Framing, socket, tap};
use crate::devices::virtio::rng::RngDevice;
use crate::devices::{
    ButtonDevice, Device, Irq, PanicDevice, PowerButton, SerialDevice, SerialInput, WatchdogDevice,
    button, lock, serial, watchdog,
};
use crate::output::{ConsoleFile, NoConsole, SpaceEvent, Terminal};

const SERIAL_BASE: u16 = 0x3f8;
const SERIAL_GSI: u32 = 4;
/// ACPI's system control interrupt, the only level-triggered one: the second serial port's on a PC.
const BUTTON_GSI: u32 = 3;
const SERIAL_NAME: &str = "console0";
const RNG_NAME: &str = "rng0";

impl MachineBuilder {
    /// Attaches both switches and returns a handle to the one for power.
    pub(super) fn attach_switches(&mut self) -> Result<PowerSwitch, MachineFault> {
        self.attach_switch(Kind::Reset, switch::RESET_PORT, MachineEvent::GuestReset)?;
        let off = MachineEvent::GuestPoweredOff;
        self.attach_switch(Kind::PowerOff, switch::CONTROL_PORT, off)
            .map(PowerSwitch::of)
    }

    fn attach_switch(
        &mut self,
        kind: Kind,
        base: u16,
        event: MachineEvent,
    ) -> Result<Arc<Mutex<Switch>>, MachineFault> {
        let events = self.events.clone();
        let device = Switch::new(kind, Box::new(move || events.halt(&event)));
        let device = Arc::new(Mutex::new(device));
        self.attach_at_ports(Arc::clone(&device), base, kind.ports(), None, "switch")?;
        Ok(device)
    }

    /// Attaches the power button and returns the handle that presses it.
    pub(super) fn attach_button(&mut self) -> Result<PowerButton, MachineFault> {
        let irq = Irq::level().map_err(create("the power button"))?;
        let device = ButtonDevice::new(irq.clone()).map_err(create("the power button"))?;
        let button = device.button();
        let (device, line) = (Arc::new(Mutex::new(device)), Some((BUTTON_GSI, irq)));
        let (base, count) = (button::EVENT_PORT, button::EVENT_PORTS);
        self.attach_at_ports(device, base, count, line, "button")?;
        Ok(button)
    }

    pub(super) fn attach_panic_port(&mut self, action: OnPanic) -> Result<(), MachineFault> {
        let events = self.events.clone();
        let device = PanicDevice::new(Box::new(move |panic| {
            let crash_kernel = panic == Panic::CrashKernel;
            let event = MachineEvent::GuestPanicked { crash_kernel };
            // A crash kernel needs time: the guest resets itself when that kernel is done.
            if crash_kernel || action == OnPanic::Report {
                events.tell(&event);
            } else {
                events.halt(&event);
            }
        }));
        let device = Arc::new(Mutex::new(device));
        self.attach_at_ports(device, pvpanic::PORT, 1, None, "pvpanic")
    }

    pub(super) fn attach_watchdog(&mut self, action: OnWatchdog) -> Result<(), MachineFault> {
        let events = self.events.clone();
        let device = WatchdogDevice::new(Box::new(move || match action {
            OnWatchdog::Reset | OnWatchdog::Poweroff => events.halt(&MachineEvent::WatchdogFired),
            OnWatchdog::None => events.tell(&MachineEvent::WatchdogFired),
        }))
        .map_err(create("the watchdog"))?;
        let (base, count) = (watchdog::STOP_PORT, watchdog::PORTS);
        self.attach_at_ports(Arc::new(Mutex::new(device)), base, count, None, "ib700")
    }

    /// Attaches a device at I/O ports, perhaps with an interrupt.
    fn attach_at_ports<D: Device + 'static>(
        &mut self,
        device: Arc<Mutex<D>>,
        base: u16,
        count: u16,
        line: Option<(u32, Irq)>,
        kind: &str,
    ) -> Result<(), MachineFault> {
        let (gsi, irq) = line.unzip();
        self.attach(Attachment {
            device,
            place: Place::Ports { base, count, gsi },
            irq,
            doorbells: Vec::new(),
            description: describe(kind, None, &[]),
            health: None,
        })
    }

    /// Attaches the serial console and returns where its input comes in.
    pub(super) fn attach_console(
        &mut self,
        console: Console,
        start: Start,
    ) -> Result<SerialInput, MachineFault> {
        let sink = open_console(console, start)?;
        let space = SpaceEvent::new().map_err(create(SERIAL_NAME))?;
        let port = self.gate().add_console(sink, space.waker());
        let port = port.map_err(create(SERIAL_NAME))?;
        let irq = Irq::new().map_err(create(SERIAL_NAME))?;
        let device = SerialDevice::new(SERIAL_NAME, port, space, irq.clone());
        let device = device.map_err(create(SERIAL_NAME))?;
        let input = device.input();
        let (device, line) = (Arc::new(Mutex::new(device)), Some((SERIAL_GSI, irq)));
        self.attach_at_ports(device, SERIAL_BASE, serial::PORTS as u16, line, "serial")?;
        Ok(input)
    }

    pub(super) fn attach_networks(
        &mut self,
        configs: Vec<NetConfig>,
    ) -> Result<Networks, MachineFault> {
        configs
            .into_iter()
            .map(|config| self.attach_network(config))
            .collect()
    }

    fn attach_network(
        &mut self,
        config: NetConfig,
    ) -> Result<Arc<Mutex<MmioTransport<NetDevice>>>, MachineFault> {
        let name = config.id;
        let opened = match config.backend {
            NetBackend::Tap(interface) => tap::open(&interface, Framing::Headers),
            NetBackend::PlainTap(interface) => tap::open(&interface, Framing::Bare),
            NetBackend::Socket(path) => socket::connect(&path),
            NetBackend::Open(backend) => Ok(backend.take(&name)?),
        };
        let Backend { source, sink } = opened.map_err(|source| ConfigError::NetBackend {
            device: name.clone(),
            source,
        })?;
        let space = SpaceEvent::new().map_err(create(&name))?;
        let port = self.gate().add_network(sink, space.waker());
        let mac = config.mac.map(|byte| format!("{byte:02x}")).join(":");
        let device = NetDevice::new(name.as_str(), config.mac, source, port, space);
        let device = device.map_err(create(&name))?;
        let offload = device.offload_in_words().to_owned();
        let more = [("mac", mac), ("offload", offload)];
        let device = self.attach_virtio(device, "virtio-net", &more, |device| {
            Some(Box::new(move || {
                (!lock(&device).device().backend_is_up())
                    .then(|| "its network backend failed; the guest's link is down".to_owned())
            }))
        })?;
        Ok(device)
    }

    /// Attaches the disks, and returns those that have, or may get, a second copy.
    pub(super) fn attach_drives(
        &mut self,
        configs: Vec<DriveConfig>,
        journal: Option<PathBuf>,
        limits: DiskLimits,
        start: Start,
    ) -> Result<DiskSet, MachineFault> {
        let mut opened = Vec::with_capacity(configs.len());
        let mut specs = Vec::new();
        for config in configs {
            opened.push(open_drive(config, start, &mut specs)?);
        }
        let journal =
            journal.filter(|_| specs.iter().any(|spec| spec.mode == DiskMode::Replicated));
        let set = DiskSet::open(specs, journal, limits).map_err(ConfigError::from)?;
        for drive in opened {
            self.attach_drive(drive, &set)?;
        }
        Ok(set)
    }

    fn attach_drive(&mut self, drive: OpenDrive, set: &DiskSet) -> Result<(), MachineFault> {
        let OpenDrive {
            id,
            read_only,
            capacity_sectors,
            description,
            medium,
            on_error,
            stalls_after,
        } = drive;
        let medium = match medium {
            OpenMedium::Plain(image) => Medium::plain(image),
            OpenMedium::Numbered(number) => Medium::Copied(set.disks()[number].clone()),
        };
        let (events, device) = (Arc::clone(&self.events), id.clone());
        let alarm: Alarm = Box::new(move |news| {
            let device = device.clone();
            events.tell(&match news {
                DiskNews::Broke(what) => return events.break_machine(format!("{device}: {what}")),
                DiskNews::Failed(what) => MachineEvent::DiskFailed { device, what },
                DiskNews::Holds(what) => MachineEvent::DiskHolds {
                    device,
                    what,
                    waits: on_error == OnError::Wait,
                },
                DiskNews::Stalls(what) => MachineEvent::DiskStalls { device, what },
                DiskNews::Moves => MachineEvent::DiskMoves { device },
                DiskNews::Hangs(what) => MachineEvent::DiskHangs { device, what },
                DiskNews::Answers(what) => MachineEvent::DiskAnswers { device, what },
            });
        });
        let device = BlkDevice::new(id.as_str(), medium, capacity_sectors, read_only, alarm);
        let mut device = device.map_err(create(&id))?;
        device.stalls_after(stalls_after);
        if on_error != OnError::Report {
            let failed = device.hold_failed();
            self.failed_requests.insert(id.clone(), failed);
        }
        let device = self.attach_virtio(device, "virtio-blk", &description, |_| None)?;
        let answering = Arc::downgrade(&device);
        lock(&device).device().answer_by(move || {
            let Some(device) = answering.upgrade() else {
                return true;
            };
            // Whoever has the device is busy with it, or has paused the machine.
            let mut free = device.try_lock();
            free.as_mut()
                .map(|device| device.handle_event(ANSWER_EVENT))
                .is_ok()
        });
        self.blocks.push(device);
        Ok(())
    }

    pub(super) fn attach_rng(&mut self) -> Result<(), MachineFault> {
        self.attach_virtio(RngDevice::new(RNG_NAME), "virtio-rng", &[], |_| None)?;
        Ok(())
    }

    fn attach_virtio<D: VirtioDevice + 'static>(
        &mut self,
        device: D,
        kind: &str,
        more: &[(&str, String)],
        health: impl FnOnce(Arc<Mutex<MmioTransport<D>>>) -> Option<Health>,
    ) -> Result<Arc<Mutex<MmioTransport<D>>>, MachineFault> {
        let name = device.name().to_owned();
        let irq = Irq::new().map_err(create(&name))?;
        let description = describe(kind, Some(device.features()), more);
        let ram = self.memory().ram().clone();
        let transport = MmioTransport::new(device, ram, irq.clone()).map_err(create(&name))?;
        let doorbells = transport
            .queue_events()
            .iter()
            .map(vmm_sys_util::eventfd::EventFd::try_clone)
            .collect::<Result<_, _>>()
            .map_err(create(&name))?;
        let device = Arc::new(Mutex::new(transport));
        self.attach(Attachment {
            device: device.clone(),
            place: Place::VirtioMmio,
            irq: Some(irq),
            doorbells,
            description,
            health: health(device.clone()),
        })?;
        Ok(device)
    }
}

impl Machine {
    /// What the guest's firmware tables say.
    pub(super) fn hardware(&self) -> Hardware {
        hardware(self.vcpus.len() as u8, self.discovery, &self.devices)
    }
}

fn hardware(vcpus: u8, discovery: Discovery, devices: &[Attached]) -> Hardware {
    let virtio_mmio = devices
        .iter()
        .filter(|attached| attached.is_virtio_mmio && discovery == Discovery::Acpi)
        .map(|attached| MmioDevice {
            // All of them lie in the hole below 4 GiB.
            base: attached.base as u32,
            bytes: MMIO_BYTES as u32,
            // All of them have one.
            gsi: attached.gsi.unwrap_or_default(),
        });
    Hardware {
        vcpus,
        virtio_mmio: virtio_mmio.collect(),
        serial: PortDevice {
            base: SERIAL_BASE,
            count: serial::PORTS as u8,
            gsi: SERIAL_GSI,
        },
        power: PowerRegisters {
            event_port: button::EVENT_PORT,
            event_ports: button::EVENT_PORTS as u8,
            control_port: switch::CONTROL_PORT,
            control_ports: Kind::PowerOff.ports() as u8,
            gsi: BUTTON_GSI,
            sleep_type_off: switch::SLEEP_TYPE_OFF,
        },
        panic_port: pvpanic::PORT,
        watchdog: (devices.iter())
            .any(|attached| attached.name == watchdog::NAME)
            .then_some(Watchdog {
                stop_port: watchdog::STOP_PORT,
                count_port: watchdog::COUNT_PORT,
                run_port: watchdog::RUN_PORT,
                tick_ms: watchdog::TICK_MS,
                ticks_max: watchdog::TICKS_MAX,
            }),
        reset: (switch::RESET_PORT as u8, switch::RESET_COMMAND),
    }
}

/// A drive whose image is open.
struct OpenDrive {
    id: String,
    read_only: bool,
    capacity_sectors: u64,
    description: Vec<(&'static str, String)>,
    medium: OpenMedium,
    on_error: OnError,
    stalls_after: Duration,
}

enum OpenMedium {
    Plain(Image),
    /// A disk of the set, by its number.
    Numbered(usize),
}

fn open_console(console: Console, start: Start) -> Result<Box<dyn ConsoleSink>, ConfigError> {
    Ok(match console {
        Console::Nowhere => Box::new(NoConsole),
        Console::Stdout => Box::new(Terminal::default()),
        Console::File(path) => {
            let file = match start {
                Start::Unprotected | Start::Primary => ConsoleFile::create(&path),
                Start::Standby => ConsoleFile::join(&path),
            };
            Box::new(file.map_err(|source| ConfigError::Console { path, source })?)
        }
        Console::Open(sink) => sink.take(SERIAL_NAME)?,
    })
}

/// Opens a drive's image. If a copy of it is to be kept, the image goes into `specs`.
fn open_drive(
    config: DriveConfig,
    start: Start,
    specs: &mut Vec<DiskSpec>,
) -> Result<OpenDrive, ConfigError> {
    let DriveConfig {
        id,
        path,
        kind,
        map_path,
        on_error,
        stalls_after,
    } = config;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"_-".contains(&byte);
    if id.is_empty() || id.len() > ID_BYTES_MAX || !id.bytes().all(fits) {
        return Err(ConfigError::DriveName(id));
    }
    let opened = match kind {
        DriveKind::Copied(DiskMode::Shared) => Image::open_shared(&path).and_then(|image| {
            // A standby takes it when it takes over.
            if start != Start::Standby {
                image.take()?;
            }
            Ok(image)
        }),
        _ => Image::open(&path, kind.is_read_only()),
    };
    let opened = opened.and_then(|image| Ok((describe_drive(&image, kind)?, image)));
    let (description, image) = opened.map_err(|source| ConfigError::Drive {
        drive: id.clone(),
        source,
    })?;
    let capacity_sectors = image.capacity_sectors();
    let medium = match kind {
        DriveKind::Copied(mode) => {
            specs.push(DiskSpec {
                name: id.clone(),
                storage: Box::new(image),
                mode,
                map_path,
            });
            OpenMedium::Numbered(specs.len() - 1)
        }
        DriveKind::Local | DriveKind::ReadOnly => OpenMedium::Plain(image),
    };
    Ok(OpenDrive {
        id,
        read_only: kind.is_read_only(),
        capacity_sectors,
        description,
        medium,
        on_error,
        stalls_after,
    })
}

/// What both hosts' images must have in common. If the guest only reads an image, both must be the
/// same; comparing their ends finds most mistakes.
fn describe_drive(
    image: &Image,
    kind: DriveKind,
) -> Result<Vec<(&'static str, String)>, ImageError> {
    let mut description = vec![
        ("capacity", format!("{} sectors", image.capacity_sectors())),
        ("read_only", kind.is_read_only().to_string()),
    ];
    match kind {
        DriveKind::ReadOnly => {
            description.push(("ends_crc32", format!("{:#010x}", image.ends_crc32()?)));
        }
        DriveKind::Local => description.push(("replication", "none".into())),
        DriveKind::Copied(mode) => description.push(("replication", mode.name().into())),
    }
    Ok(description)
}

fn create(device: &str) -> impl FnOnce(std::io::Error) -> MachineFault {
    let device = device.to_owned();
    move |source| AttachError::Create { device, source }.into()
}

fn describe(kind: &str, features: Option<u64>, more: &[(&str, String)]) -> Vec<(String, String)> {
    let mut description = vec![("type".to_owned(), kind.to_owned())];
    if let Some(features) = features {
        description.push(("features".into(), format!("{features:#x}")));
    }
    description.extend(
        more.iter()
            .map(|(key, value)| ((*key).to_owned(), value.clone())),
    );
    description
}
