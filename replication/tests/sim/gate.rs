//! The shipped output gate between the simulated guest and the client: what it lets out is a list.

use std::sync::Arc;

use bytes::Bytes;
use understudy_replication::ids::EpochId;
use understudy_replication::output::{MemoryFrames, NetPort, OutputGate, SealedOutput};

use super::guest::Output;

pub struct Gate {
    gate: OutputGate,
    port: NetPort,
    wire: MemoryFrames,
}

impl Gate {
    pub fn new() -> Self {
        let (gate, wire) = (OutputGate::default(), MemoryFrames::default());
        let port = gate.add_network(Arc::new(wire.clone()), || ());
        Self { gate, port, wire }
    }

    /// Takes an output in; returns what may leave at once.
    pub fn take(&self, output: Output) -> Option<Output> {
        let sent = self.port.send(to_frame(output));
        sent.expect("the simulated guest says too little to fill a gate");
        self.left().pop()
    }

    pub fn hold(&self) {
        self.gate.hold();
    }

    pub fn seal(&self, epoch: EpochId) -> SealedOutput {
        self.gate.seal(epoch)
    }

    pub fn release(&self, through: EpochId) -> Vec<Output> {
        // Simulated time does not stand still in a release.
        assert!(self.gate.release(through, || true));
        self.left()
    }

    pub fn left_through(&self) -> EpochId {
        self.gate.left_through()
    }

    pub fn open(&self) -> Vec<Output> {
        self.gate.open();
        self.left()
    }

    pub fn repeat(&self, output: &SealedOutput) -> Vec<Output> {
        self.gate.repeat(output);
        self.left()
    }

    /// Whether something is held.
    pub fn holds(&self) -> bool {
        self.gate.counts().held_bytes > 0
    }

    pub fn shut(&self) {
        self.gate.shut();
    }

    fn left(&self) -> Vec<Output> {
        let frames = self.wire.take();
        frames.iter().map(|frame| from_frame(frame)).collect()
    }
}

fn to_frame(output: Output) -> Bytes {
    let mut bytes = output.number.to_le_bytes().to_vec();
    bytes.extend(output.value.to_le_bytes());
    bytes.extend(output.start.to_le_bytes());
    bytes.into()
}

fn from_frame(frame: &[u8]) -> Output {
    let word = |at: usize| u64::from_le_bytes(frame[at..at + 8].try_into().unwrap());
    Output {
        number: word(0),
        value: word(8),
        start: u32::from_le_bytes(frame[16..20].try_into().unwrap()),
    }
}
