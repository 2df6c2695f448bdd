//! Step ⑨: the guest's output, and when it may leave.
//!
//! ```text
//!  device ─ NetPort / ConsolePort ─► current bucket ─ seal ─► sealed buckets ─ release ─► outbox ─► sink
//!                 │ (open, nothing waiting)                                                  ▲
//!                 └──────────────────────────────────────────────────────────────────────────┘
//! ```
//!
//! Rule R1 is enforced here: no output of the guest leaves before its epoch is released. Devices
//! put output into a [`NetPort`] or a [`ConsolePort`]. Sinks ([`FrameSink`], [`ConsoleSink`]) take
//! it to the outside. Nothing may reach a sink without passing the gate, except through
//! [`NetPort::announce`], which carries no output of the guest.
//!
//! # In a VMM
//!
//! A machine makes one [`OutputGate`] and returns it from
//! [`Machine::gate`](crate::ports::Machine::gate). The runtime holds, seals and releases; the
//! machine only puts output in. A machine without network and console needs only this:
//!
//! ```
//! use understudy_replication::output::OutputGate;
//!
//! struct Vm {
//!     gate: OutputGate, // made with `OutputGate::default()`
//! }
//!
//! impl Vm {
//!     fn gate(&self) -> OutputGate {
//!         self.gate.clone()
//!     }
//! }
//! ```
//!
//! With a network device:
//!
//! ```
//! use std::io::ErrorKind::WouldBlock;
//! use std::os::unix::net::UnixDatagram;
//! use std::sync::Arc;
//! use std::sync::atomic::{AtomicBool, Ordering};
//!
//! use understudy_replication::output::{FrameSink, OutputGate, SendError};
//!
//! /// Where the guest's frames end. A tap is written to in the same way.
//! struct Cable(UnixDatagram);
//!
//! impl FrameSink for Cable {
//!     fn send(&self, frame: &[u8]) -> Result<(), SendError> {
//!         match self.0.send(frame) {
//!             Ok(_) => Ok(()),
//!             Err(error) if error.kind() == WouldBlock => Err(SendError::Busy),
//!             Err(_) => Err(SendError::Closed),
//!         }
//!     }
//! }
//!
//! # fn main() -> std::io::Result<()> {
//! let (cable, network) = UnixDatagram::pair()?;
//! cable.set_nonblocking(true)?;
//! let gate = OutputGate::default();
//! let has_room = Arc::new(AtomicBool::new(true));
//! let wake = Arc::clone(&has_room); // a real device would wake its thread
//! let port = gate.add_network(Arc::new(Cable(cable)), move || {
//!     wake.store(true, Ordering::Release);
//! });
//!
//! // The device, for each frame on its ring. A frame that is refused stays on the ring.
//! let mut transmit = |frame: &'static [u8]| {
//!     if port.send(frame.into()).is_err() {
//!         has_room.store(false, Ordering::Release);
//!     }
//! };
//!
//! # use understudy_replication::EpochId;
//! # let mut buffer = [0; 60];
//! # network.set_nonblocking(true)?;
//! transmit(&[1; 60]); // open: leaves at once
//! # assert_eq!(network.recv(&mut buffer)?, 60);
//! # gate.hold();
//! transmit(&[2; 60]); // protected: leaves once its epoch is released
//! # assert!(network.recv(&mut buffer).is_err());
//! # gate.seal(EpochId(1));
//! # assert!(gate.release(EpochId(1), || true));
//! # assert_eq!((network.recv(&mut buffer)?, buffer), (60, [2; 60]));
//! # Ok(())
//! # }
//! ```
//!
//! After a promotion [`Machine::announce`](crate::ports::Machine::announce) makes frames with
//! [`announce`] and sends them through [`NetPort::announce`].
//!
//! A network device also tells its port what it gives to the guest ([`NetPort::received`]), so that it can follow
//! a guest that is handed over, and gives the guest first what has come with it ([`NetPort::arrived`]). Between the
//! announcement and the guest's first instruction it keeps what comes in ([`NetPort::defer`]). Without that, clients
//! have to send again what they sent during a handover.

pub mod announce;
mod arrivals;
mod block;
mod bucket;
mod console;
mod counters;
mod gate;
mod kept;
mod limits;
mod line;
mod memory;
mod network;
mod sealed;
mod signals;
mod sink;
mod state;
#[cfg(test)]
mod tests;
mod writer;

pub use arrivals::{ARRIVALS_BYTES_MAX, Arrivals};
pub use console::ConsolePort;
pub use counters::OutputCounts;
pub use gate::OutputGate;
pub use kept::{KEPT_CONSOLE_BYTES_MAX, KEPT_FRAME_BYTES_MAX, KeptOutput};
pub use limits::{FRAME_OVERHEAD_BYTES, GateLimits};
pub use memory::{MemoryConsole, MemoryFrames};
pub use network::NetPort;
pub use sealed::{ConsoleOutput, ConsoleProgress, NetworkFrame, SealedOutput};
pub use signals::{Full, OutputEvent, OutputListener};
pub use sink::{ConsoleSink, FrameSink, SendError};
pub use state::GateMode;
