//! What `vmm status` shows, as plain data.

use serde::{Deserialize, Serialize};
use understudy_transport::LinkMetrics;

use crate::core::message::Trouble;
use crate::output::OutputCounts;
use crate::ports::Disks;
use crate::ports::disks::DiskStatus;

/// Which side this is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    /// Runs the guest.
    #[default]
    Primary,
    /// Keeps the second copy.
    Standby,
}

/// Percentiles of a distribution.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Percentiles {
    /// Number of samples.
    pub count: u64,
    /// Median.
    pub p50: u64,
    /// 90th percentile.
    pub p90: u64,
    /// 99th percentile.
    pub p99: u64,
    /// Largest.
    pub max: u64,
}

/// How pages of epochs were encoded.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Encoded {
    /// All-zero pages.
    pub zero: u64,
    /// Pages equal to their last shipped version, which are not sent.
    pub unchanged: u64,
    /// Pages sent as a difference from their last shipped version.
    pub delta: u64,
    /// Pages sent compressed.
    pub compressed: u64,
    /// Pages sent raw.
    pub raw: u64,
}

/// The times of one failover, as seen by the promoted side, in milliseconds.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FailoverFigures {
    /// Why the primary counted as lost.
    pub cause: String,
    /// Its machine had broken.
    pub machine_broke: bool,
    /// The generation granted.
    pub generation: u64,
    /// The epoch the guest continued from.
    pub epoch: u64,
    /// From the primary's last sign of life to the decision that it is lost.
    pub reaction_ms: f64,
    /// From that decision to the guest running here.
    pub recovery_ms: f64,
    /// Both together.
    pub outage_ms: f64,
    /// From the last sign of life to being protected again, once that has happened.
    pub repair_ms: Option<f64>,
    /// System monotonic clock at the decision, in nanoseconds.
    pub detected_monotonic_ns: u64,
    /// System monotonic clock when the guest ran, in nanoseconds.
    pub running_monotonic_ns: u64,
}

/// One side's state at a moment.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// Which side this is.
    #[serde(rename = "role")]
    pub side: Side,
    /// Name of the virtual machine.
    pub vm: String,
    /// This side's name.
    pub node: String,
    /// The core's phase.
    pub phase: String,
    /// Generation in force, as far as this side knows.
    pub generation: u64,
    /// Last epoch acknowledged (primary) or committed (standby).
    pub epoch: u64,
    /// Whether the guest would survive the loss of a host now.
    pub protected: bool,
    /// The other side's name, when there is one.
    pub peer: Option<String>,
    /// How long the other side may be silent now before it counts as lost, in milliseconds.
    #[serde(default)]
    pub silence_timeout_ms: f64,
    /// Epochs acknowledged (primary) or committed (standby) by this process.
    pub epochs: u64,
    /// Time the guest stood still per epoch, in microseconds.
    pub pause_us: Percentiles,
    /// From the pause to the acknowledgement, in microseconds.
    pub ack_us: Percentiles,
    /// Dirty pages per epoch.
    pub dirty_pages: Percentiles,
    /// Pages that are not write-protected now, because that is cheaper: they count as dirty in every epoch.
    #[serde(default)]
    pub open_pages: u64,
    /// How much of its time the guest is kept from running, in percent, because its changes could not be shipped in
    /// time otherwise.
    #[serde(default)]
    pub slowed_percent: f64,
    /// Dirty pages of all epochs.
    pub dirty_pages_total: u64,
    /// Their size before encoding, in bytes.
    pub raw_dirty_bytes: u64,
    /// Bytes of all epochs on the logging channel.
    pub wire_bytes: u64,
    /// How the pages were encoded.
    pub encoded: Encoded,
    /// Traffic of all links of this process so far.
    #[serde(default)]
    pub link: LinkMetrics,
    /// Standby: what came of connections to its port so far.
    #[serde(default)]
    pub strangers: StrangerCounts,
    /// The guest's output at this side's gate.
    pub output: OutputCounts,
    /// The disks and their replication.
    #[serde(default)]
    pub disks: DisksStatus,
    /// Bytes of memory shipped by initial synchronisations.
    pub sync_bytes: u64,
    /// The failover that made this side the primary, if one did.
    pub failover: Option<FailoverFigures>,
    /// What the last output of a guest that has ended waits for.
    #[serde(default)]
    pub ending: Option<String>,
    /// Primary: what fails on the standby's host of what the guest would need there; nothing is known
    /// of it if this is `None`.
    #[serde(default)]
    pub backup_troubles: Option<Vec<Trouble>>,
    /// How often the arbiter gave no answer.
    #[serde(default)]
    pub arbiter_failures: u64,
    /// What is wrong now, as far as this side knows. What has been repaired is not in it.
    pub alarm: Option<String>,
}

/// What came of connections to a standby's port.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StrangerCounts {
    /// All connections.
    pub connections: u64,
    /// Went without introducing themselves.
    pub gone: u64,
    /// Did not introduce themselves in time.
    pub silent: u64,
    /// Sent something other than an introduction.
    pub malformed: u64,
    /// Closed to make room for others, before they introduced themselves.
    pub turned_away: u64,
    /// Introduced themselves and were refused.
    pub refused: u64,
}

/// The disks, and what replication does with them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DisksStatus {
    /// The disks in configuration order, without those that are only read.
    pub disks: Vec<DiskStatus>,
    /// Primary: the last synchronisation, or the one in progress.
    pub sync: Option<DiskSync>,
    /// Standby: the images are copies that are not whole yet.
    pub unfinished: bool,
    /// Bytes of disk writes of all epochs on the logging channel.
    pub wire_bytes: u64,
    /// The last epoch of this session that is durable on the backup's images.
    pub durable_epoch: u64,
    /// Primary: writes in memory that are not shipped yet or are held for shared disks, in bytes.
    pub log_bytes: u64,
    /// Standby: size of the journal's content, in bytes.
    pub journal_bytes: u64,
    /// Standby: writes to shared disks that are kept in memory, in bytes.
    pub held_bytes: u64,
    /// What the next synchronisation with the same backup would copy at least, in bytes.
    pub marked_bytes: u64,
}

/// A synchronisation of disks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct DiskSync {
    /// For each disk, in configuration order: whether nothing was known of the standby's image, so that all of it is
    /// compared or sent, not only what has changed.
    pub full: Vec<bool>,
    /// For each disk: whether it is compared, and only what differs is sent.
    pub compared: Vec<bool>,
    /// Bytes to be compared or copied when it began.
    pub bytes: u64,
    /// Bytes still to be compared or copied.
    pub bytes_left: u64,
    /// Bytes sent so far, including what the guest wrote meanwhile.
    pub bytes_sent: u64,
    /// Bytes found equal so far, which were not sent.
    pub bytes_equal: u64,
    /// How long the copying has taken, in milliseconds.
    pub elapsed_ms: u64,
}

impl DisksStatus {
    /// Adds what the disks themselves know.
    pub(super) fn with(mut self, disks: &dyn Disks) -> Self {
        let counts = disks.counts();
        self.disks = disks.list();
        self.log_bytes = counts.log_bytes;
        self.journal_bytes = counts.journal_bytes;
        self.held_bytes = counts.backup_held_bytes;
        self.marked_bytes = counts.marked_bytes;
        self
    }
}
