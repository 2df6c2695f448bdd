//! The guest's command line: `key=value` words, separated by spaces.
//!
//! The one definition for the guest that obeys it and the VMM that writes it. Nothing is ignored: an
//! unknown key, a repeated key or a value out of range is an error that names it. The keys the VMM
//! appends (`virtio_mmio.device`, `nr_cpus`) are read here too.

use core::fmt;
use core::net::Ipv4Addr;
use core::str::FromStr;

use crate::disk;

/// Most vCPUs the guest runs.
pub const VCPUS_MAX: u8 = 4;
/// Most virtio devices a command line may name.
pub const DEVICES_MAX: usize = 8;
/// Most pages the `dirty` workload writes on one vCPU (2 GiB).
const DIRTY_PAGES_MAX: u32 = 1 << 19;

/// Which workloads run. `idle` is the empty set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Workloads {
    /// Serve HTTP on [`STREAM_PORT`](crate::STREAM_PORT).
    pub stream: bool,
    /// Serve the counter protocol on [`COUNTER_PORT`](crate::COUNTER_PORT).
    pub counter: bool,
    /// Echo on [`ECHO_PORT`](crate::ECHO_PORT).
    pub echo: bool,
    /// Write memory.
    pub dirty: bool,
    /// Write a disk, and check it (see [`disk`]).
    pub disk: bool,
}

/// How much of a page the `dirty` workload writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyMode {
    /// The whole page, with bytes that do not compress.
    #[default]
    Page,
    /// One word of eight bytes.
    Word,
}

/// Which pages an iteration of the `dirty` workload writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum DirtyPattern {
    /// Every page once, in order.
    #[default]
    Sequential,
    /// As many writes as there are pages, each to a random page.
    Random,
    /// As random, but 90 % of the writes go to the first 10 % of the pages.
    HotCold,
}

/// The `dirty` workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dirty {
    /// Page writes in an iteration, and pages in each vCPU's own range.
    pub pages: u32,
    /// How much of each page.
    pub mode: DirtyMode,
    /// Which pages.
    pub pattern: DirtyPattern,
    /// Iterations per second on each vCPU; 0 runs freely.
    pub rate: u32,
    /// Iterations of each vCPU after which it rests; 0 never.
    pub iterations: u32,
}

impl Default for Dirty {
    fn default() -> Self {
        Self {
            pages: 1000,
            mode: DirtyMode::Page,
            pattern: DirtyPattern::Sequential,
            rate: 0,
            iterations: 0,
        }
    }
}

/// The `disk` workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Disk {
    /// Blocks of [`disk::BLOCK_BYTES`] at the beginning of the first disk, one of them the ledger.
    pub blocks: u32,
    /// Writes per second; 0 runs freely.
    pub rate: u32,
    /// Writes between flushes.
    pub flush_every: u32,
    /// `disk.log_ms=N`: milliseconds between two lines about the disk.
    pub log_ms: u32,
}

impl Default for Disk {
    fn default() -> Self {
        Self {
            blocks: 1024,
            rate: 200,
            flush_every: 16,
            log_ms: 1000,
        }
    }
}

/// A virtio-mmio device, as Linux describes it on a command line: `size@base:irq`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Length of the register window in bytes.
    pub bytes: u64,
    /// Guest-physical address of the registers.
    pub base: u64,
    /// Its interrupt, as a GSI.
    pub gsi: u32,
}

/// Everything a command line says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// `workload=stream,counter,…`; the default is idle.
    pub workloads: Workloads,
    /// `ip=a.b.c.d/prefix`.
    pub ip: Ipv4Addr,
    /// Bits of the network part of `ip`.
    pub prefix_bits: u8,
    /// `gateway=a.b.c.d`; without one only the own network is reached.
    pub gateway: Option<Ipv4Addr>,
    /// `stream.rate=N`: bytes per second to each client of `/stream`; 0 is without limit.
    pub stream_rate: u64,
    /// `dirty.…=…`
    pub dirty: Dirty,
    /// `disk.…=…`
    pub disk: Disk,
    /// `exit_after_ms=N`: power off that long after boot; 0 is never.
    pub exit_after_ms: u64,
    /// `reboot_after_ms=N`: ask for a reset that long after boot; 0 is never.
    pub reboot_after_ms: u64,
    /// `nr_cpus=N`, appended by the VMM.
    pub nr_cpus: u8,
    /// `virtio_mmio.device=…`, appended by the VMM, in order.
    pub devices: [Option<MmioDevice>; DEVICES_MAX],
}

impl Default for Options {
    fn default() -> Self {
        Self {
            workloads: Workloads::default(),
            ip: Ipv4Addr::new(10, 77, 0, 2),
            prefix_bits: 24,
            gateway: None,
            stream_rate: 256 * 1024,
            dirty: Dirty::default(),
            disk: Disk::default(),
            exit_after_ms: 0,
            reboot_after_ms: 0,
            nr_cpus: 1,
            devices: [None; DEVICES_MAX],
        }
    }
}

/// What is wrong with a word of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Problem {
    /// There is no such key.
    UnknownKey,
    /// The word is not `key=value`.
    NoValue,
    /// The key was there before.
    Repeated,
    /// The value is not one this key takes; the text says what is.
    BadValue(&'static str),
}

/// A word of the command line that cannot be obeyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionError<'a> {
    /// The word as it was written.
    pub word: &'a str,
    /// What is wrong with it.
    pub problem: Problem,
}

impl fmt::Display for OptionError<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let word = self.word;
        match self.problem {
            Problem::UnknownKey => write!(f, "guest option `{word}`: there is no such key"),
            Problem::NoValue => write!(f, "guest option `{word}`: it must be key=value"),
            Problem::Repeated => write!(f, "guest option `{word}`: the key was given before"),
            Problem::BadValue(takes) => {
                write!(f, "guest option `{word}`: the value must be {takes}")
            }
        }
    }
}

impl core::error::Error for OptionError<'_> {}

/// Every key but `virtio_mmio.device`, which may be repeated.
const KEYS: [&str; 16] = [
    "workload",
    "ip",
    "gateway",
    "stream.rate",
    "dirty.pages",
    "dirty.mode",
    "dirty.pattern",
    "dirty.rate",
    "dirty.iterations",
    "disk.blocks",
    "disk.rate",
    "disk.flush_every",
    "disk.log_ms",
    "exit_after_ms",
    "reboot_after_ms",
    "nr_cpus",
];

impl Options {
    /// Reads a command line.
    ///
    /// # Errors
    ///
    /// The first word that cannot be obeyed.
    pub fn parse(line: &str) -> Result<Self, OptionError<'_>> {
        let mut options = Self::default();
        let mut seen = [false; KEYS.len()];
        for word in line.split_ascii_whitespace() {
            let wrong = |problem| OptionError { word, problem };
            let (key, value) = word.split_once('=').ok_or(wrong(Problem::NoValue))?;
            if let Some(index) = KEYS.iter().position(|known| *known == key) {
                if core::mem::replace(&mut seen[index], true) {
                    return Err(wrong(Problem::Repeated));
                }
            } else if key != "virtio_mmio.device" {
                return Err(wrong(Problem::UnknownKey));
            }
            options
                .set(key, value)
                .map_err(|takes| wrong(Problem::BadValue(takes)))?;
        }
        Ok(options)
    }

    fn set(&mut self, key: &str, value: &str) -> Result<(), &'static str> {
        match key {
            "workload" => self.workloads = Workloads::parse(value)?,
            "ip" => {
                const TAKES: &str = "a.b.c.d/prefix with a prefix of 1 to 32";
                let (ip, prefix) = value.split_once('/').ok_or(TAKES)?;
                self.ip = ip.parse().map_err(|_| TAKES)?;
                self.prefix_bits = number(prefix, 1, 32, TAKES)?;
            }
            "gateway" => self.gateway = Some(value.parse().map_err(|_| "a.b.c.d")?),
            "stream.rate" => {
                self.stream_rate = number(value, 0, 1 << 40, "bytes per second, up to 2^40")?;
            }
            "dirty.pages" => {
                self.dirty.pages = number(value, 1, DIRTY_PAGES_MAX, "1 to 524288 pages")?;
            }
            "dirty.mode" => {
                self.dirty.mode = match value {
                    "page" => DirtyMode::Page,
                    "word" => DirtyMode::Word,
                    _ => return Err("page or word"),
                }
            }
            "dirty.pattern" => {
                self.dirty.pattern = match value {
                    "sequential" => DirtyPattern::Sequential,
                    "random" => DirtyPattern::Random,
                    "hotcold" => DirtyPattern::HotCold,
                    _ => return Err("sequential, random or hotcold"),
                }
            }
            "dirty.rate" => {
                self.dirty.rate =
                    number(value, 0, 1_000_000, "0 to 1000000 iterations per second")?;
            }
            "dirty.iterations" => {
                self.dirty.iterations = number(value, 0, u32::MAX, "0 to 4294967295")?;
            }
            "disk.blocks" => {
                let (least, most) = (disk::BLOCKS_MIN, disk::BLOCKS_MAX);
                self.disk.blocks = number(value, least, most, "2 to 65536 blocks of 4 KiB")?;
            }
            "disk.rate" => {
                self.disk.rate = number(value, 0, 1_000_000, "0 to 1000000 writes per second")?;
            }
            "disk.flush_every" => {
                self.disk.flush_every = number(value, 1, 1_000_000, "1 to 1000000 writes")?;
            }
            "disk.log_ms" => {
                self.disk.log_ms = number(value, 10, 60_000, "10 to 60000 milliseconds")?;
            }
            "exit_after_ms" => self.exit_after_ms = number(value, 0, u64::MAX, "milliseconds")?,
            "reboot_after_ms" => self.reboot_after_ms = number(value, 0, u64::MAX, "milliseconds")?,
            "nr_cpus" => self.nr_cpus = number(value, 1, VCPUS_MAX, "1 to 4")?,
            _ => {
                let free = self.devices.iter_mut().find(|slot| slot.is_none());
                *free.ok_or("one of at most 8 devices")? =
                    Some(value.parse().map_err(|()| "size@base:irq")?);
            }
        }
        Ok(())
    }
}

/// Parses plain decimal digits within bounds.
fn number<T: FromStr + PartialOrd>(
    text: &str,
    least: T,
    most: T,
    takes: &'static str,
) -> Result<T, &'static str> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(takes);
    }
    text.parse()
        .ok()
        .filter(|number| (least..=most).contains(number))
        .ok_or(takes)
}

impl Workloads {
    fn parse(list: &str) -> Result<Self, &'static str> {
        let mut workloads = Self::default();
        for name in list.split(',') {
            match name {
                "stream" => workloads.stream = true,
                "counter" => workloads.counter = true,
                "echo" => workloads.echo = true,
                "dirty" => workloads.dirty = true,
                "disk" => workloads.disk = true,
                "idle" => {}
                _ => return Err("a list of stream, counter, echo, dirty, disk, idle"),
            }
        }
        Ok(workloads)
    }
}

impl fmt::Display for Workloads {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = [
            (self.stream, "stream"),
            (self.counter, "counter"),
            (self.echo, "echo"),
            (self.dirty, "dirty"),
            (self.disk, "disk"),
        ];
        let mut names = names.iter().filter(|(on, _)| *on).map(|(_, name)| *name);
        f.write_str(names.next().unwrap_or("idle"))?;
        names.try_for_each(|name| write!(f, ",{name}"))
    }
}

impl FromStr for MmioDevice {
    type Err = ();

    /// Reads `size@base:irq` with K, M or G behind a size and decimal or 0x numbers, as Linux does.
    fn from_str(text: &str) -> Result<Self, ()> {
        let (bytes, rest) = text.split_once('@').ok_or(())?;
        let (base, gsi) = rest.split_once(':').ok_or(())?;
        let (digits, shift) = match bytes.as_bytes().last() {
            Some(b'K' | b'k') => (&bytes[..bytes.len() - 1], 10),
            Some(b'M' | b'm') => (&bytes[..bytes.len() - 1], 20),
            Some(b'G' | b'g') => (&bytes[..bytes.len() - 1], 30),
            _ => (bytes, 0),
        };
        let bytes = plain(digits)?.checked_mul(1 << shift).ok_or(())?;
        let gsi = u32::try_from(plain(gsi)?).map_err(|_| ())?;
        Ok(Self {
            bytes,
            base: plain(base)?,
            gsi,
        })
    }
}

fn plain(text: &str) -> Result<u64, ()> {
    let (digits, radix) = text
        .strip_prefix("0x")
        .map_or((text, 10), |digits| (digits, 16));
    if !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
        return Err(());
    }
    u64::from_str_radix(digits, radix).map_err(|_| ())
}

impl fmt::Display for MmioDevice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.bytes.is_multiple_of(1024) {
            write!(f, "{}K@{:#x}:{}", self.bytes / 1024, self.base, self.gsi)
        } else {
            write!(f, "{}@{:#x}:{}", self.bytes, self.base, self.gsi)
        }
    }
}

impl fmt::Display for Options {
    /// Writes the command line that says this, without what the VMM appends itself.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "workload={} ip={}/{}",
            self.workloads, self.ip, self.prefix_bits
        )?;
        if let Some(gateway) = self.gateway {
            write!(f, " gateway={gateway}")?;
        }
        let Dirty {
            pages,
            mode,
            pattern,
            rate,
            iterations,
        } = self.dirty;
        let mode = match mode {
            DirtyMode::Page => "page",
            DirtyMode::Word => "word",
        };
        let pattern = match pattern {
            DirtyPattern::Sequential => "sequential",
            DirtyPattern::Random => "random",
            DirtyPattern::HotCold => "hotcold",
        };
        write!(f, " stream.rate={}", self.stream_rate)?;
        write!(f, " dirty.pages={pages} dirty.mode={mode}")?;
        write!(
            f,
            " dirty.pattern={pattern} dirty.rate={rate} dirty.iterations={iterations}"
        )?;
        let Disk {
            blocks,
            rate,
            flush_every,
            log_ms,
        } = self.disk;
        write!(f, " disk.blocks={blocks} disk.rate={rate}")?;
        write!(f, " disk.flush_every={flush_every} disk.log_ms={log_ms}")?;
        write!(f, " exit_after_ms={}", self.exit_after_ms)?;
        write!(f, " reboot_after_ms={}", self.reboot_after_ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::string::ToString;

    #[test]
    fn the_line_a_vmm_writes() {
        let options = Options::parse(
            "workload=stream,dirty ip=10.77.0.9/16 gateway=10.77.0.1 dirty.mode=word \
             virtio_mmio.device=4K@0xd0000000:5 virtio_mmio.device=4K@0xd0001000:6 nr_cpus=2",
        )
        .unwrap();
        assert!(options.workloads.stream && options.workloads.dirty && !options.workloads.echo);
        assert_eq!(
            (options.ip, options.prefix_bits),
            (Ipv4Addr::new(10, 77, 0, 9), 16)
        );
        assert_eq!(options.gateway, Some(Ipv4Addr::new(10, 77, 0, 1)));
        assert_eq!(options.dirty.mode, DirtyMode::Word);
        assert_eq!(options.dirty.pages, 1000);
        assert_eq!(options.stream_rate, 262_144);
        assert_eq!(options.nr_cpus, 2);
        let second = MmioDevice {
            bytes: 4096,
            base: 0xd000_1000,
            gsi: 6,
        };
        assert_eq!(options.devices[1], Some(second));
        assert_eq!(options.devices[2], None);
    }

    #[test]
    fn every_wrong_word_is_named() {
        for (word, problem) in [
            ("quiet", Problem::NoValue),
            ("colour=red", Problem::UnknownKey),
            (
                "workload=sleep",
                Problem::BadValue("a list of stream, counter, echo, dirty, disk, idle"),
            ),
            ("nr_cpus=5", Problem::BadValue("1 to 4")),
            ("dirty.pages=0", Problem::BadValue("1 to 524288 pages")),
            (
                "disk.blocks=1",
                Problem::BadValue("2 to 65536 blocks of 4 KiB"),
            ),
            ("dirty.mode=byte", Problem::BadValue("page or word")),
            (
                "virtio_mmio.device=4K@x:5",
                Problem::BadValue("size@base:irq"),
            ),
            ("exit_after_ms=-1", Problem::BadValue("milliseconds")),
        ] {
            let line = format!("stream.rate=5 {word}");
            let error = Options::parse(&line).unwrap_err();
            assert_eq!(error, OptionError { word, problem });
            assert!(error.to_string().contains(word));
        }
        let error = Options::parse("nr_cpus=1 nr_cpus=2").unwrap_err();
        assert_eq!(
            error,
            OptionError {
                word: "nr_cpus=2",
                problem: Problem::Repeated
            }
        );
    }

    #[test]
    fn more_devices_than_fit_are_an_error() {
        let line = "virtio_mmio.device=4K@0xd0000000:5 ".repeat(DEVICES_MAX + 1);
        let error = Options::parse(&line).unwrap_err();
        assert_eq!(error.problem, Problem::BadValue("one of at most 8 devices"));
        assert!(Options::parse(&line[..line.len() / (DEVICES_MAX + 1) * DEVICES_MAX]).is_ok());
    }

    prop_compose! {
        fn any_options()(
            stream: bool, counter: bool, echo: bool, dirty: bool, disk: bool,
            blocks in disk::BLOCKS_MIN..=disk::BLOCKS_MAX, disk_rate in 0_u32..=1_000_000,
            flush_every in 1_u32..=1_000_000,
            log_ms in 10_u32..=60_000,
            ip: u32, prefix_bits in 1_u8..=32, gateway: Option<u32>,
            stream_rate in 0..=1_u64 << 40, pages in 1..=DIRTY_PAGES_MAX,
            word: bool, pattern in 0..3, rate in 0_u32..=1_000_000, iterations: u32, exit_after_ms: u64, reboot_after_ms: u64,
        ) -> Options {
            Options {
                workloads: Workloads { stream, counter, echo, dirty, disk },
                ip: Ipv4Addr::from_bits(ip),
                prefix_bits,
                gateway: gateway.map(Ipv4Addr::from_bits),
                stream_rate,
                dirty: Dirty {
                    pages,
                    mode: if word { DirtyMode::Word } else { DirtyMode::Page },
                    pattern: match pattern {
                        0 => DirtyPattern::Sequential,
                        1 => DirtyPattern::Random,
                        _ => DirtyPattern::HotCold,
                    },
                    rate,
                    iterations,
                },
                disk: Disk { blocks, rate: disk_rate, flush_every, log_ms },
                exit_after_ms,
                reboot_after_ms,
                ..Options::default()
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(options in any_options(), nr_cpus in 1..=VCPUS_MAX, base: u64, gsi: u32, bytes in 0..1_u64 << 40) {
            let device = MmioDevice { bytes, base, gsi };
            let line = format!("{options} virtio_mmio.device={device} nr_cpus={nr_cpus}");
            let mut expected = Options { nr_cpus, ..options };
            expected.devices[0] = Some(device);
            prop_assert_eq!(Options::parse(&line), Ok(expected));
        }

        #[test]
        fn any_text_is_an_answer(line: std::string::String) {
            if let Err(error) = Options::parse(&line) {
                prop_assert!(line.contains(error.word));
            }
        }
    }
}
