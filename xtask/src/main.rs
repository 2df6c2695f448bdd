//! Development tasks: `cargo xtask <task>`.

mod check;
mod debian;
mod demos;
mod guest_image;
mod test;
mod testbed;

use anyhow::{Result, bail};

const HELP: &str = "\
cargo xtask <task>

  test         all tests; installs the Debian packages they need when run as root, names them otherwise
  check        format, lints and documentation, warnings denied
  demos N      the demo N times in a row with 20 clients, both faults, and a table of the figures
  guest-image  the Linux guest: kernel, initramfs and root file system from Debian's packages
               ([--kernel cloud|generic] [--fresh]); says where they are
  testbed boot Linux guests on real KVM in an emulated host (needs Debian 12; installs the packages it
               needs when run as root, names them otherwise; downloads a kernel once)
  testbed linux
               the same with the Linux guest image: root on a disk, both of Debian's kernels
  testbed list the scenarios of the two-host testbed
  testbed run [--json] [--times N] [--seed N] NAME...|all
               run scenarios on two emulated hosts: faults, and what clients of the guest see of them
               (needs Debian and root; installs the packages it needs)
";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match arguments.as_slice() {
        ["test", rest @ ..] => test::run(rest),
        ["check"] => check::run(),
        ["demos", times] => demos::run(times.parse()?),
        ["guest-image", rest @ ..] => guest_image::command(rest),
        ["testbed", "boot"] => testbed::boot(),
        ["testbed", "linux"] => testbed::linux(),
        ["testbed", "list"] => {
            testbed::list();
            Ok(())
        }
        ["testbed", "run", rest @ ..] => testbed::run(rest),
        ["help" | "--help" | "-h"] | [] => {
            print!("{HELP}");
            Ok(())
        }
        _ => bail!("unknown task {:?}\n\n{HELP}", arguments.join(" ")),
    }
}

/// Runs a command and fails with its line if it does.
fn run(program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Result<()> {
    let line = format!("{program} {}", arguments.join(" "));
    eprintln!("+ {line}");
    let status = std::process::Command::new(program)
        .args(arguments)
        .envs(environment.iter().copied())
        .current_dir(root())
        .status()
        .map_err(|error| anyhow::anyhow!("cannot run {program}: {error}"))?;
    if !status.success() {
        bail!("`{line}` failed ({status})");
    }
    Ok(())
}

/// The repository.
fn root() -> std::path::PathBuf {
    let manifest = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    manifest.parent().unwrap_or(manifest).to_path_buf()
}
