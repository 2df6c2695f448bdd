//! What is counted of a node's guest, collected from where it is counted. Whoever exports metrics reads
//! [`NodeMetrics`]; names carry the numbers of the data's way in their docs.
//!
//! What must not be done here: count, or wait for longer than a pause. A device that is busy for longer is reported as it was
//! last seen.

use std::sync::{Arc, TryLockError};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use understudy_replication::output::{OutputCounts, OutputGate};
use understudy_replication::runtime::{Encoded, Percentiles, Status, StrangerCounts};
use understudy_transport::LinkMetrics;

use crate::devices::Snapshot;
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::blk::{BlkCounters, BlkDevice};
use crate::devices::virtio::net::{NetCounters, NetDevice};
use crate::machine::{Machine, VirtioHandle};

/// A node's counters at a moment. They count from the process' start, each for itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeMetrics {
    /// Network devices, in the guest's order.
    pub net: Vec<Named<NetCounters>>,
    /// Disks, in the guest's order.
    pub blk: Vec<Named<BlkCounters>>,
    /// ⑨: the output gate.
    pub gate: OutputCounts,
    /// ② to ⑧: epochs; zero for a guest without a second copy.
    pub epochs: EpochMetrics,
    /// ⑤ to ⑧: the logging channel, all its links together; zero for a guest without a second copy.
    pub link: LinkMetrics,
    /// What came of connections to a standby's port.
    #[serde(default)]
    pub strangers: StrangerCounts,
}

/// Counters of a device.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named<C> {
    /// The device's name.
    pub device: String,
    /// What it has counted.
    #[serde(flatten)]
    pub counters: C,
}

/// What epochs cost.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EpochMetrics {
    /// Epochs acknowledged (primary) or committed (standby).
    pub epochs: u64,
    /// ②: dirty pages of all epochs.
    pub dirty_pages: u64,
    /// ③: how long the guest stood still per epoch, in microseconds.
    pub pause_us: Percentiles,
    /// ④: how pages were encoded.
    pub encoded: Encoded,
    /// ⑤: bytes of all epochs on the logging channel.
    pub wire_bytes: u64,
    /// ⑤: bytes of disk writes of all epochs on the logging channel.
    pub disk_wire_bytes: u64,
    /// Bytes of memory shipped by initial synchronisations.
    pub sync_bytes: u64,
    /// ⑧: from the pause to the acknowledgement, in microseconds.
    pub ack_us: Percentiles,
}

impl EpochMetrics {
    fn of(status: &Status) -> Self {
        Self {
            epochs: status.epochs,
            dirty_pages: status.dirty_pages_total,
            pause_us: status.pause_us,
            encoded: status.encoded,
            wire_bytes: status.wire_bytes,
            disk_wire_bytes: status.disks.wire_bytes,
            sync_bytes: status.sync_bytes,
            ack_us: status.ack_us,
        }
    }
}

/// Where the counters are. Clones are the same.
#[derive(Clone)]
pub(super) struct MetricsRoom(Arc<Inner>);

struct Inner {
    gate: OutputGate,
    net: Vec<Counted<NetDevice, NetCounters>>,
    blk: Vec<Counted<BlkDevice, BlkCounters>>,
}

/// How often a device that is busy is tried before what was seen last is told again.
const TRIES: u32 = 10;
const BETWEEN_TRIES: Duration = Duration::from_millis(1);

struct Counted<D, C> {
    device: VirtioHandle<D>,
    /// As last seen.
    seen: Mutex<Named<C>>,
}

impl<D: VirtioDevice, C: Clone + Default> Counted<D, C> {
    fn new(device: &VirtioHandle<D>) -> Self {
        let name = crate::devices::lock(device).name().to_owned();
        let seen = Named {
            device: name,
            counters: C::default(),
        };
        Self {
            device: Arc::clone(device),
            seen: Mutex::new(seen),
        }
    }

    fn read(&self, counters: impl Fn(&D) -> C) -> Named<C> {
        let mut seen = self.seen.lock();
        for _ in 0..TRIES {
            match self.device.try_lock() {
                Ok(device) => {
                    seen.counters = counters(device.device());
                    break;
                }
                // A pause holds it for a moment. What takes longer is not waited for.
                Err(TryLockError::WouldBlock) => std::thread::sleep(BETWEEN_TRIES),
                Err(TryLockError::Poisoned(_)) => break,
            }
        }
        seen.clone()
    }
}

impl MetricsRoom {
    pub(super) fn of(machine: &Machine) -> Self {
        Self(Arc::new(Inner {
            gate: machine.output_gate().clone(),
            net: machine.networks().iter().map(Counted::new).collect(),
            blk: machine.blocks().iter().map(Counted::new).collect(),
        }))
    }

    pub(super) fn read(&self, replication: Option<&Status>) -> NodeMetrics {
        let inner = &self.0;
        NodeMetrics {
            net: inner
                .net
                .iter()
                .map(|net| net.read(NetDevice::counters))
                .collect(),
            blk: inner
                .blk
                .iter()
                .map(|blk| blk.read(BlkDevice::counters))
                .collect(),
            gate: inner.gate.counts(),
            epochs: replication.map(EpochMetrics::of).unwrap_or_default(),
            link: replication.map(|status| status.link).unwrap_or_default(),
            strangers: replication
                .map(|status| status.strangers)
                .unwrap_or_default(),
        }
    }
}
