//! The directory that both hosts see, by NFSv4 with its locks: what README asks for. The server is nfs-ganesha,
//! which runs in user space and needs no service beside it.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result};

use super::wait::until;
use crate::debian::{self, Release};

/// The server, and what it keeps files in.
const PACKAGES: [&str; 2] = ["nfs-ganesha", "nfs-ganesha-vfs"];
/// After that much silence a client has lost its locks.
const LEASE_SECONDS: u32 = 10;
const START: Duration = Duration::from_secs(20);

/// Downloads the server if it is not below `directory` already.
pub(super) fn provide(directory: &Path) -> Result<()> {
    debian::provide_programs(&PACKAGES, Release::Stable, &directory.join("ganesha"))
}

/// A running server. It ends with the value.
pub(super) struct Storage {
    process: Child,
    /// The shared directory, as this side sees it.
    pub(super) directory: PathBuf,
}

impl Storage {
    /// Serves an empty directory, `shared` below `directory`.
    pub(super) fn start(directory: &Path) -> Result<Self> {
        let program = directory.join("ganesha/usr");
        let work = directory.join("nfs");
        let shared = directory.join("shared");
        for fresh in [&work, &shared] {
            if fresh.exists() {
                fs::remove_dir_all(fresh)?;
            }
            fs::create_dir_all(fresh)?;
        }
        let libraries = program.join("lib/x86_64-linux-gnu");
        fs::write(work.join("conf"), configuration(&libraries, &work, &shared))?;
        let mut paths = debian::libraries(&directory.join("ganesha"));
        paths.push(":");
        paths.push(program.join("lib/ganesha"));
        let process = Command::new(program.join("bin/ganesha.nfsd"))
            .arg("-F")
            .arg("-f")
            .arg(work.join("conf"))
            .arg("-L")
            .arg(work.join("log"))
            .arg("-p")
            .arg(work.join("pid"))
            .env("LD_LIBRARY_PATH", paths)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("cannot start nfs-ganesha")?;
        let storage = Self {
            process,
            directory: shared,
        };
        until("the NFS server to listen", START, || {
            Ok(std::net::TcpStream::connect("10.79.0.1:2049").ok())
        })
        .with_context(|| format!("its log is {}", work.join("log").display()))?;
        Ok(storage)
    }
}

impl Drop for Storage {
    fn drop(&mut self) {
        // If it has ended already, there is nothing left to do.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn configuration(libraries: &Path, work: &Path, shared: &Path) -> String {
    format!(
        "NFS_CORE_PARAM {{
    Protocols = 4; Enable_NLM = false; Enable_RQUOTA = false; Enable_UDP = false;
    Plugins_Dir = \"{}\";
}}
NFSv4 {{
    # No client has anything to reclaim from a server that starts with an empty directory.
    Graceless = true;
    Lease_Lifetime = {LEASE_SECONDS};
    Minor_Versions = 1, 2;
    RecoveryBackend = fs; RecoveryRoot = \"{}\";
    # Owners as numbers: no name service is needed.
    Allow_Numeric_Owners = true; Only_Numeric_Owners = true; UseGetpwnam = true; DomainName = \"testbed\";
    Delegations = false;
}}
NFS_KRB5 {{ Active_krb5 = false; }}
EXPORT {{
    Export_Id = 1; Path = \"{}\"; Pseudo = \"/shared\"; Protocols = 4; Transports = TCP;
    Access_Type = RW; Squash = None; SecType = sys;
    FSAL {{ Name = VFS; }}
}}
",
        libraries.join("ganesha").display(),
        work.display(),
        shared.display()
    )
}
