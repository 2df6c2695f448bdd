//! The `vmm` binary: the command line in front of the libraries. Decides nothing that a library could.

#![deny(clippy::print_stdout, clippy::print_stderr)]

mod args;
mod commands;
mod exit;
mod say;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command, DiskCommand};

/// Environment variable with the log level, or `tracing` directives.
const LOG_VARIABLE: &str = "UNDERSTUDY_LOG";

const LOG_DEFAULT: &str = "info";
/// virtio-queue logs what guests do wrong; a guest must not be able to fill the log, unless somebody asks
/// for just that.
const LOG_ALWAYS: &str = "virtio_queue=off";

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(found) => return exit::usage(&found),
    };
    start_log(cli.log_json);
    let done = match cli.command {
        Command::Run(arguments) => commands::node::run(arguments),
        Command::Primary(arguments) => commands::node::primary(arguments),
        Command::Standby(arguments) => commands::node::standby(arguments),
        Command::Status(arguments) => commands::status::status(&arguments),
        Command::Events(arguments) => commands::status::events(&arguments),
        Command::Disk(DiskCommand::Verify(arguments)) => commands::verify::verify(&arguments),
        Command::Failover(arguments) => commands::status::failover(&arguments),
        Command::Stop(arguments) => commands::status::stop(&arguments),
        Command::PowerButton(arguments) => commands::status::power_button(&arguments),
        Command::Arbiter(command) => commands::arbiter::arbiter(&command),
        Command::Check(arguments) => commands::check::check(&arguments),
        Command::Demo(arguments) => commands::demo::demo(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn start_log(json: bool) {
    let filter = log_filter(std::env::var(LOG_VARIABLE).ok().as_deref());
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        // It would say with a panic that standard error is full.
        .log_internal_errors(false)
        .with_target(false);
    if json {
        log.json().init();
    } else {
        log.init();
    }
}

fn log_filter(wanted: Option<&str>) -> EnvFilter {
    let filter = |wanted: &str| EnvFilter::try_new(format!("{LOG_ALWAYS},{wanted}"));
    match wanted.map(filter) {
        Some(Ok(filter)) => filter,
        Some(Err(error)) => {
            say::complain(format_args!(
                "vmm: {LOG_VARIABLE} is not understood ({error}); logging as usual"
            ));
            EnvFilter::new(format!("{LOG_ALWAYS},{LOG_DEFAULT}"))
        }
        None => EnvFilter::new(format!("{LOG_ALWAYS},{LOG_DEFAULT}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wish_for_more_log_lets_no_guest_fill_it() {
        let text = |wanted| log_filter(wanted).to_string();
        for wanted in [
            None,
            Some("debug"),
            Some("understudy_vmm=trace,info"),
            Some("no=such=thing"),
        ] {
            assert!(text(wanted).contains("virtio_queue=off"), "{wanted:?}");
        }
        assert!(text(Some("virtio_queue=trace")).contains("virtio_queue=trace"));
        assert!(!text(Some("virtio_queue=trace")).contains("virtio_queue=off"));
    }
}
