//! How the program ends: exit codes, and errors with a hint. Libraries say what is wrong; which flag helps is
//! said here.

use std::error::Error;
use std::process::ExitCode;

use understudy_vmm::config::ConfigError;
use understudy_vmm::control::ControlError;
use understudy_vmm::node::{NodeError, SettingsError};

use crate::say::complain;

/// Something failed; the message says what.
pub(crate) const FAILED: u8 = 1;
/// The command line makes no sense.
const WRONG_USAGE: u8 = 2;
/// Another host owns the guest now.
pub(crate) const FENCED: u8 = 3;
/// The disks' images are not equal on both hosts.
const DIFFERS: u8 = 4;

/// This side was fenced: no failure of the program, but the guest does not run here any more.
#[derive(Debug, thiserror::Error)]
#[error("fenced: {0}")]
pub(crate) struct Fenced(pub(crate) String);

/// The images were compared and are not equal: no failure of the program.
#[derive(Debug, thiserror::Error)]
#[error("{blocks} blocks of 64 KiB differ{}", if *.repaired { "; they were sent to the standby once more" } else { "" })]
pub(crate) struct Differs {
    pub(crate) blocks: u64,
    pub(crate) repaired: bool,
}

/// Shows help or the version, or what is wrong with the command line.
pub(crate) fn usage(found: &clap::Error) -> ExitCode {
    match (found.print(), found.use_stderr()) {
        (_, true) => ExitCode::from(WRONG_USAGE),
        (Ok(()), false) => ExitCode::SUCCESS,
        (Err(error), false) => {
            report(&anyhow::Error::from(error).context("cannot write to standard output"))
        }
    }
}

/// Says on standard error what went wrong, with all its causes and what may help, and picks the exit code.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    let mut text = String::new();
    for cause in error.chain() {
        let cause = cause.to_string();
        // Some errors repeat their source's text in their own.
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    let flag = config_error(error).and_then(flag_of).unwrap_or_default();
    complain(format_args!("vmm: {text}{flag}"));
    if let Some(hint) = error.chain().find_map(hint) {
        complain(format_args!("     {hint}"));
    }
    if error.downcast_ref::<Fenced>().is_some() {
        ExitCode::from(FENCED)
    } else if error.downcast_ref::<Differs>().is_some() {
        ExitCode::from(DIFFERS)
    } else {
        ExitCode::from(FAILED)
    }
}

/// What to say of the flag that sets the same as the key that `error` is about.
fn flag_of(error: &ConfigError) -> Option<String> {
    let key = error.key()?;
    let flag = key.flag?;
    let part = match key.path {
        "drives[].map_path" => " path=…,map=FILE",
        _ => "",
    };
    Some(format!(" (flag: {flag}{part})"))
}

/// The configuration's error behind `error`, if there is one.
fn config_error(error: &anyhow::Error) -> Option<&ConfigError> {
    error.chain().find_map(|cause| match cause.downcast_ref() {
        Some(SettingsError::Config(error)) => Some(error),
        _ => cause.downcast_ref(),
    })
}

/// The flag that helps, if one does.
fn hint(error: &(dyn Error + 'static)) -> Option<&'static str> {
    if let Some(ControlError::InUse { .. } | ControlError::NoSocket { .. }) = error.downcast_ref() {
        return Some("another socket is chosen with --control PATH");
    }
    if let Some(Differs {
        repaired: false, ..
    }) = error.downcast_ref()
    {
        return Some(
            "the guest uses the primary's image: if that is the good one, --repair sends these blocks to the standby; if \
             not, `vmm failover` before the damage spreads",
        );
    }
    let node: &NodeError = error.downcast_ref()?;
    if node.is_about_disks_of_another_arbiter() {
        return Some(
            "`vmm primary` with --start-over runs the guest from these disks all the same; `vmm standby` with \
             --full-resync lets the other host's guest overwrite them",
        );
    }
    (node.can_be_started_over()).then_some(
        "if no other side is alive: `vmm primary` with --start-over starts the guest from nothing and gives up what \
         others have of it",
    )
}

#[cfg(test)]
mod tests {
    use understudy_replication::Generation;
    use understudy_replication::runtime::RuntimeError;

    use super::*;

    #[test]
    fn errors_of_libraries_name_no_flag_but_have_a_hint_that_does() {
        let older = RuntimeError::OlderDisks {
            holder: "host-a".into(),
            generation: Generation(3),
        };
        let in_use = ControlError::InUse {
            path: "/run/vmm.sock".into(),
        };
        for (error, flag) in [
            (NodeError::from(older).into(), "--start-over"),
            (anyhow::Error::from(in_use), "--control"),
        ] {
            assert!(!error.to_string().contains("--"), "{error}");
            let error = error.context("starting");
            let hint = error.chain().find_map(hint).expect("a hint");
            assert!(hint.contains(flag), "{hint}");
        }
    }
}
