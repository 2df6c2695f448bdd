//! Who speaks as the guest: the service network's bridge moves the guest's address to the port of each frame
//! that has it as its source, and says so. One frame of an old primary is enough to be seen here.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::network::{Network, Side};
use super::vmm::GUEST_MAC;

/// Writes down the moves of all addresses. It ends with the value.
pub(super) struct Speakers {
    process: Child,
    log: PathBuf,
}

impl Speakers {
    pub(super) fn listen(log: &Path) -> Result<Self> {
        let process = Command::new("bridge")
            .args(["monitor", "fdb"])
            .stdin(Stdio::null())
            .stdout(File::create(log)?)
            .spawn()
            .context("cannot run bridge (package iproute2)")?;
        Ok(Self {
            process,
            log: log.to_owned(),
        })
    }

    /// How much has been written down so far.
    pub(super) fn mark(&self) -> Result<usize> {
        Ok(fs::read(&self.log)?.len())
    }

    /// The hosts from which the guest has begun to speak since `mark`, in order.
    pub(super) fn since(&self, mark: usize) -> Result<Vec<Side>> {
        let bytes = fs::read(&self.log)?;
        Ok(speakers(&String::from_utf8_lossy(
            &bytes[mark.min(bytes.len())..],
        )))
    }
}

impl Drop for Speakers {
    fn drop(&mut self) {
        // If it has ended already, there is nothing left to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn speakers(text: &str) -> Vec<Side> {
    text.lines()
        .filter(|line| line.starts_with(GUEST_MAC))
        .filter_map(|line| {
            let on = |side: &Side| line.contains(&format!("dev {} ", Network::Service.tap(*side)));
            Side::BOTH.into_iter().find(on)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_moves_of_the_guests_address_count() {
        let text = format!(
            "{GUEST_MAC} dev service-11 master service\n\
             Deleted {GUEST_MAC} dev service-11 master service\n\
             52:54:00:77:4d:0c dev service-11 master service\n\
             {GUEST_MAC} dev service-12 master service\n"
        );
        assert_eq!(speakers(&text), [Side::A, Side::B]);
    }
}
