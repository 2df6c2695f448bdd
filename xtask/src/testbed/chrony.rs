//! chrony, Debian's: on this side it serves the time, on hosts and guests it keeps their clocks. How far off a clock
//! is tells its own answer to a question for the time.

use std::net::UdpSocket;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};

use super::host::Host;
use super::vmm_binary;
use crate::debian::{self, Release, Tree};

const PACKAGES: [&str; 1] = ["chrony"];
/// Where hosts ask for the time: this side, on the network that is never cut.
const SERVER: &str = "10.80.0.1";
/// No commands over sockets.
const MUTE: &str = "cmdport 0\nbindcmdaddress /\n";
/// Seconds from NTP's epoch, 1900, to Unix'.
const ERAS_APART_S: f64 = 2_208_988_800.0;
const FRACTIONS_PER_S: f64 = 4_294_967_296.0;
const PACKET_BYTES: usize = 48;

/// What docs/guests.md has people write into a file of its own in the guest.
const GUEST_CONFIGURATION: &str = "refclock PHC /dev/ptp0 poll 0 dpoll -2 maxsamples 1\n";
/// What it has them change in Debian's configuration.
const GUEST_MAKESTEP: [&str; 2] = ["makestep 1 3", "makestep 0.05 -1"];

/// Downloads it if it is not there.
pub(super) fn provide() -> Result<()> {
    debian::provide_programs(&PACKAGES, Release::Stable, &directory())
}

fn directory() -> PathBuf {
    crate::workspace::root().join("target/debian/chrony")
}

fn program() -> PathBuf {
    directory().join("usr/sbin/chronyd")
}

/// Puts it and its libraries into `tree`, with Debian's configuration changed as docs/guests.md says.
pub(super) fn copy_for_guest(tree: &Tree) -> Result<()> {
    copy(tree)?;
    let debians = directory().join("usr/share/chrony/chrony.conf");
    let text = std::fs::read_to_string(&debians).context("Debian's configuration of chrony")?;
    let [from, to] = GUEST_MAKESTEP;
    ensure!(text.contains(from), "no {from:?} in {}", debians.display());
    tree.write("etc/chrony/chrony.conf", &text.replace(from, to))?;
    tree.write("etc/chrony/chrony.keys", "")?;
    tree.write("etc/chrony/conf.d/host.conf", GUEST_CONFIGURATION)?;
    // So that it can be asked how far off it is.
    let asked = format!("{MUTE}allow\n");
    tree.write("etc/chrony/conf.d/asked.conf", &asked)?;
    let directories = [
        "etc/chrony/sources.d",
        "var/lib/chrony",
        "var/log/chrony",
        "run/chrony",
    ];
    directories.iter().try_for_each(|path| tree.directory(path))
}

fn copy(tree: &Tree) -> Result<()> {
    // It looks up who it is to be.
    tree.write("etc/passwd", "root:x:0:0::/:/bin/sh\n")?;
    tree.write("etc/group", "root:x:0:\n")?;
    let libraries = debian::libraries(&directory());
    vmm_binary::copy_program(&program(), "bin/chronyd", &libraries, tree)
}

/// What a guest that has it runs.
pub(super) const IN_GUEST: &str =
    "chronyd -d -u root -f /etc/chrony/chrony.conf > /tmp/chrony.log 2>&1 &";

/// Serves the time on this side. It ends with the value.
pub(super) struct Server(Child);

impl Server {
    /// `work` is a directory for what it writes.
    pub(super) fn start(work: &Path) -> Result<Self> {
        let (configuration, pid_file) = (work.join("chrony.conf"), work.join("chrony.pid"));
        // One that was killed leaves it.
        let _ = std::fs::remove_file(&pid_file);
        let pid_file = pid_file.display();
        let text = format!("{MUTE}pidfile {pid_file}\nlocal stratum 1\nallow\n");
        std::fs::write(&configuration, text)?;
        let child = Command::new(program())
            .env("LD_LIBRARY_PATH", debian::libraries(&directory()))
            // -x: this machine's clock is not its business.
            .args(["-d", "-x", "-u", "root", "-f"])
            .arg(&configuration)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(work.join("chrony.log"))?)
            .spawn()
            .context("cannot start chronyd")?;
        Ok(Self(child))
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // If it has ended already, there is nothing left to do.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Puts the program and its libraries where the hosts get it from.
pub(super) fn share(shared: &Path) -> Result<()> {
    copy(&Tree::new(shared, "chrony", "")?)
}

/// Has a host set its clock by this side's, and keep it so. `shared` is what was given to [`share`], as hosts see it.
pub(super) fn start_in(host: &Host, shared: &str) -> Result<()> {
    host.must(&format!(
        "killall -q chronyd; rm -rf /run/chrony; cp -r {shared}/chrony /run/ && cat > /run/chrony/conf <<'END'
{MUTE}pidfile /pid
allow
server {SERVER} iburst minpoll -2 maxpoll 1
makestep 0.005 -1
END
         setsid chroot /run/chrony /bin/chronyd -d -u root -f /conf > /run/chrony.log 2>&1 < /dev/null &"
    ))?;
    Ok(())
}

/// How far a clock is ahead of this side's, in seconds: too far by as long as the question is on its way, but never
/// by how long the answer is. `None` if there is none within a while.
pub(super) fn ahead_s(address: &str, patience: Duration) -> Result<Option<f64>> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    socket.connect((address, 123))?;
    socket.set_read_timeout(Some(patience))?;
    let mut question = [0; PACKET_BYTES];
    // Version 4, a client.
    question[0] = 0x23;
    let asked = SystemTime::now().duration_since(UNIX_EPOCH)?.as_secs_f64();
    let stamp = ((asked + ERAS_APART_S) * FRACTIONS_PER_S) as u64;
    question[40..].copy_from_slice(&stamp.to_be_bytes());
    if socket.send(&question).is_err() {
        return Ok(None);
    }
    let mut answer = [0; PACKET_BYTES];
    match socket.recv(&mut answer) {
        Ok(PACKET_BYTES) if answer[24..32] == stamp.to_be_bytes() => {}
        _ => return Ok(None),
    }
    Ok(Some(received_s(&answer) - asked))
}

/// When the question was received, by the other's clock, in seconds since Unix' epoch.
fn received_s(answer: &[u8; PACKET_BYTES]) -> f64 {
    let part = |at: usize| {
        f64::from(u32::from_be_bytes(
            [0, 1, 2, 3].map(|byte| answer[at + byte]),
        ))
    };
    part(32) - ERAS_APART_S + part(36) / FRACTIONS_PER_S
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_an_answer_is_read() {
        let mut answer = [0; PACKET_BYTES];
        answer[32..36].copy_from_slice(&(2_208_988_800_u32 + 1_700_000_000).to_be_bytes());
        answer[36] = 0x40;
        assert!((received_s(&answer) - 1_700_000_000.25).abs() < 1e-6);
    }

    #[test]
    fn what_is_tried_is_what_the_documentation_says() {
        let text = include_str!("../../../docs/guests.md");
        assert!(text.contains(GUEST_CONFIGURATION));
        let [from, to] = GUEST_MAKESTEP;
        assert!(text.contains(&format!("s/^{from}$/{to}/")));
    }
}
