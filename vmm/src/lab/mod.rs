//! A whole cluster on one machine, without privileges: an Ethernet switch in this process, clients
//! with a TCP/IP stack of their own that check every byte, and `vmm` processes as hosts. `vmm demo`,
//! the end-to-end tests and the benchmarks are made of it. Nothing of it runs in production.

mod clients;
mod network;
mod stack;
mod switch;

pub use clients::{ClientError, Figures, Load};
pub use network::{LabError, Network};
pub use switch::{PortCounts, Switch};
