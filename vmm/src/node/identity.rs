//! Which host this is, whatever it is called: clones of a machine share their name, and a host that ran the guest
//! last must not be taken for another one that did not.
//!
//! The identity is made once, at random, and kept in a file beside the disks' state, with the machine's id: a file
//! that was copied to another machine with the rest of a disk says so. What must not be done here: decide who may run.

use std::fs::File;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Longest file that is read as an identity.
const BYTES_MAX: u64 = 4096;

/// Why there is no identity to be had.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {}, which tells this host from others", path.display())]
pub struct IdentityError {
    /// What was attempted.
    pub what: &'static str,
    /// The file.
    pub path: PathBuf,
    /// The cause.
    #[source]
    pub source: std::io::Error,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Identity {
    host: String,
    /// Of the machine where it was made; empty if that had none.
    machine: String,
}

/// This host's identity, which is in the file at `path`, or is made now.
pub(super) fn of_host(path: &Path) -> Result<String, IdentityError> {
    let machine = std::fs::read_to_string("/etc/machine-id").unwrap_or_default();
    of_machine(path, machine.trim())
}

/// An identity for a host that cannot keep one: nobody has it, so it is taken for no host that ran the guest.
pub(super) fn unkept() -> String {
    format!("{:016x}", rand::random::<u64>())
}

fn of_machine(path: &Path, machine: &str) -> Result<String, IdentityError> {
    let failed = |what| {
        move |source| IdentityError {
            what,
            path: path.into(),
            source,
        }
    };
    if let Some(kept) = read(path).map_err(failed("read"))? {
        if kept.machine == machine {
            return Ok(kept.host);
        }
        tracing::warn!(
            "{} was made on another machine, so this host gets an identity of its own",
            path.display()
        );
    }
    let made = Identity {
        host: unkept(),
        machine: machine.into(),
    };
    write(path, &made).map_err(failed("write"))?;
    Ok(made.host)
}

fn read(path: &Path) -> std::io::Result<Option<Identity>> {
    let file = match File::open(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let reader = std::io::Read::take(file, BYTES_MAX);
    Ok(Some(serde_json::from_reader(reader)?))
}

/// A crash leaves no file, or a whole one.
fn write(path: &Path, identity: &Identity) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let mut file = File::create(&temporary)?;
    file.write_all(serde_json::to_string(identity)?.as_bytes())?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_identity_is_made_once_and_a_copy_of_its_file_is_no_other_hosts() {
        let directory = tempfile::tempdir().unwrap();
        let (here, there) = (directory.path().join("a"), directory.path().join("b"));
        let mine = of_machine(&here, "one").unwrap();
        assert_eq!(of_machine(&here, "one").unwrap(), mine);
        assert_ne!(
            of_machine(&there, "one").unwrap(),
            mine,
            "another disk, another identity"
        );
        std::fs::copy(&here, &there).unwrap();
        let other = of_machine(&there, "two").unwrap();
        assert_ne!(other, mine);
        assert_eq!(of_machine(&there, "two").unwrap(), other);
        assert_eq!(of_host(&there).unwrap(), of_host(&there).unwrap());
    }

    #[test]
    fn a_file_that_is_no_identity_is_not_replaced_in_silence() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("a");
        std::fs::write(&path, "precious").unwrap();
        let error = of_host(&path).unwrap_err().to_string();
        assert!(error.contains(&path.display().to_string()), "{error}");
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    }
}
