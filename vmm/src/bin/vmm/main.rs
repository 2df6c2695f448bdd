//! The `vmm` binary: the command line in front of the libraries. Decides nothing that a library could.

mod args;
mod commands;
mod exit;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::Parser;
use tracing_subscriber::EnvFilter;

use crate::args::{Cli, Command};

/// Environment variable with the log level, or `tracing` directives.
const LOG_VARIABLE: &str = "UNDERSTUDY_LOG";

/// virtio-queue logs what guests do wrong; a guest must not be able to fill the log.
const LOG_DEFAULT: &str = "info,virtio_queue=off";

fn main() -> ExitCode {
    let cli = Cli::parse();
    start_log(cli.log_json);
    let done = match cli.command {
        Command::Run(arguments) => commands::run::run(arguments),
        Command::Primary(arguments) => commands::replicated::primary(arguments),
        Command::Standby(arguments) => commands::replicated::standby(arguments),
        Command::Status(arguments) => commands::status::status(&arguments),
        Command::Failover(arguments) => commands::status::failover(&arguments),
        Command::Stop(arguments) => commands::status::stop(&arguments),
        Command::Check(arguments) => commands::check::check(&arguments),
        Command::Demo(arguments) => commands::demo::demo(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => exit::report(&error),
    }
}

fn start_log(json: bool) {
    let filter =
        EnvFilter::try_from_env(LOG_VARIABLE).unwrap_or_else(|_| EnvFilter::new(LOG_DEFAULT));
    let log = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .with_target(false);
    if json {
        log.json().init();
    } else {
        log.init();
    }
}
