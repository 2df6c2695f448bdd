//! Fills what the guest offers with random bytes.

use rand::TryRngCore;
use rand::rngs::OsRng;
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use vm_memory::Bytes;

use crate::devices::virtio::{Chain, Progress, RingFault, Rings, VirtioDevice};
use crate::devices::{DeviceError, DeviceState, EventSource};

const QUEUE: usize = 0;
/// Descriptors in the queue.
const QUEUE_SIZE: u16 = 64;
/// A request gets no more than this, however much it asks for.
const REQUEST_BYTES_MAX: usize = 4096;
/// Requests answered in one call.
const REQUESTS_PER_CALL: usize = 64;
const STATE_VERSION: u16 = 1;

/// A source of random numbers.
pub struct RngDevice {
    name: String,
    malformed_chains: u64,
}

impl RngDevice {
    /// A device named `name`.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            malformed_chains: 0,
        }
    }

    /// Requests that were not in guest memory or not writable.
    #[must_use]
    pub fn malformed_chains(&self) -> u64 {
        self.malformed_chains
    }

    fn answer(&mut self, rings: &mut Rings<'_>) -> Result<Progress, RingFault> {
        for _ in 0..REQUESTS_PER_CALL {
            let chain = match rings.pop(QUEUE)? {
                Some(chain) => chain,
                None if rings.await_kick(QUEUE)? => continue,
                None => return Ok(Progress::Done),
            };
            let head = chain.head_index();
            let written = fill(chain, rings).unwrap_or_else(|| {
                self.malformed_chains += 1;
                0
            });
            rings.push_used(QUEUE, head, written)?;
        }
        Ok(Progress::More(QUEUE))
    }
}

/// Fills a chain with random bytes and tells how many; `None` if it is malformed.
fn fill(chain: Chain<'_>, rings: &Rings<'_>) -> Option<u32> {
    let mut random = [0; REQUEST_BYTES_MAX];
    let mut written = 0;
    for descriptor in chain {
        if !descriptor.is_write_only() {
            return None;
        }
        let len = (descriptor.len() as usize).min(REQUEST_BYTES_MAX - written);
        let bytes = &mut random[..len];
        OsRng.try_fill_bytes(bytes).ok()?;
        rings.memory.write_slice(bytes, descriptor.addr()).ok()?;
        written += len;
        if written == REQUEST_BYTES_MAX {
            break;
        }
    }
    Some(written as u32)
}

impl VirtioDevice for RngDevice {
    fn name(&self) -> &str {
        &self.name
    }

    fn device_type(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn features(&self) -> u64 {
        0
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn read_config(&self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}

    fn activate(&mut self, _features: u64) {}

    fn reset(&mut self) {}

    fn start(&mut self, _rings: Option<&mut Rings<'_>>) {}

    fn process_queue(
        &mut self,
        _queue: usize,
        rings: &mut Rings<'_>,
    ) -> Result<Progress, RingFault> {
        self.answer(rings)
    }

    fn event_sources(&self) -> Vec<EventSource> {
        Vec::new()
    }

    fn process_event(
        &mut self,
        _source: usize,
        _rings: Option<&mut Rings<'_>>,
    ) -> Result<Progress, RingFault> {
        Ok(Progress::Done)
    }

    /// There is no state: random numbers have no history, and those already given are in guest memory.
    fn save(&self) -> Result<DeviceState, DeviceError> {
        DeviceState::encode(&self.name, STATE_VERSION, &())
    }

    fn restore(&mut self, state: &DeviceState) -> Result<(), DeviceError> {
        state.decode(&self.name, STATE_VERSION)
    }
}
