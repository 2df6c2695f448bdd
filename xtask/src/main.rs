//! Development tasks: `cargo xtask <task>`.

mod bench;
mod chaos;
mod check;
mod debian;
mod demos;
mod fuzz;
mod guest_image;
mod model;
mod mutants;
mod simulate;
mod test;
mod testbed;
mod tidy;
mod workspace;

use anyhow::Result;
use clap::Parser;

/// Development tasks of Understudy.
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", max_term_width = 100)]
enum Task {
    /// Run all tests.
    ///
    /// Needs /dev/kvm and root, for network namespaces and tap devices. Installs the Debian packages that the
    /// tests need when run as root, names them otherwise.
    Test {
        /// Further arguments of `cargo test`, such as `-p understudy-transport` or the name of a test.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        further: Vec<String>,
    },
    /// Check format, the house's rules (`tidy`), lints and documentation, with warnings denied.
    Check,
    /// Check what the compiler does not: imports, lengths, words, threads, items that nobody uses.
    ///
    /// Each finding names a file and a line, and what to do. Exceptions stand in xtask/tidy.txt.
    Tidy,
    /// Run the demo many times in a row with 20 clients and both faults, and print a table of the figures.
    Demos {
        /// How often with each fault.
        times: usize,
    },
    /// Explore the models of the cores within large bounds: every order of everything that can go wrong.
    ///
    /// Prints states, unique states, depth, time and bounds of each. Takes a while and gigabytes of memory; the
    /// tests explore smaller bounds.
    Model {
        /// Only tests whose name begins with this.
        #[arg(default_value = "")]
        filter: String,
    },
    /// Break each rule on purpose, as xtask/mutants.toml says, and see the test fail that guards it.
    ///
    /// Fails if a test passes all the same. Works in a copy of the working tree in target/mutants.
    Mutants {
        /// Only those whose name, rule or file contains this.
        #[arg(default_value = "")]
        filter: String,
        /// Only list them.
        #[arg(long)]
        list: bool,
        /// Have cargo-mutants change everything in the rooms of the library whose name begins with the filter, instead.
        /// Takes hours for all of them.
        #[arg(long, conflicts_with = "list")]
        generated: bool,
    },
    /// Run many seeds of the simulator in a release build, with progress every 10 s.
    ///
    /// Prints each seed that fails with the rule it broke, and a line that replays it.
    Simulate(simulate::Options),
    /// Measure, beside QEMU's COLO, Remus' way and stop and send, and write docs/BENCHMARKS.md with its charts.
    ///
    /// Takes about half an hour, and a quiet machine: it says how busy that was. Downloads QEMU 7.2 from Debian, and installs
    /// nothing of it.
    Bench(bench::Options),
    /// Let hosts, networks, storage and arbiter of a protected guest fail, and check what its clients see.
    ///
    /// All failures alone and in pairs, at moments that a seed decides, on real KVM between network namespaces of its own.
    /// Needs root. docs/SAFETY.md says what is checked; `cargo xtask chaos --help` prints the options.
    #[command(disable_help_flag = true)]
    Chaos {
        /// The options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Count failovers that nobody needed: of hosts that stand still for a while, are busy, or short of memory.
    ///
    /// With several time-outs, in the same surroundings as `chaos`. Needs root, and a quiet machine; `cargo xtask stalls
    /// --help` prints the options.
    #[command(disable_help_flag = true)]
    Stalls {
        /// The options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Measure what clients see of a guest that changes memory faster than a slow logging channel ships it.
    ///
    /// In the same surroundings as `chaos`. Needs root, and a quiet machine; `cargo xtask links --help` prints the options.
    #[command(disable_help_flag = true)]
    Links {
        /// The options.
        #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
        options: Vec<String>,
    },
    /// Fuzz everything that a peer, a state file or a guest can say, for a while each.
    ///
    /// What reaches something new is kept in fuzz/corpus, what crashes in fuzz/artifacts.
    Fuzz(fuzz::FuzzArgs),
    /// Build the Linux guest from Debian's packages: kernel, initramfs, root file system. Says where they are.
    GuestImage(guest_image::ImageArgs),
    /// Run Linux guests in emulated hosts.
    #[command(subcommand)]
    Testbed(testbed::Command),
}

fn main() -> Result<()> {
    match Task::parse() {
        Task::Test { further } => test::run(&further),
        Task::Check => check::check(),
        Task::Tidy => tidy::run(),
        Task::Demos { times } => demos::run(times),
        Task::Model { filter } => model::explore(&filter),
        Task::Mutants {
            filter,
            list,
            generated,
        } => mutants::run(&filter, list, generated),
        Task::Simulate(options) => simulate::run(&options),
        Task::Bench(options) => bench::run(&options),
        Task::Chaos { options } => chaos::run("chaos", &options),
        Task::Stalls { options } => chaos::run("stalls", &options),
        Task::Links { options } => chaos::run("links", &options),
        Task::Fuzz(arguments) => fuzz::command(&arguments),
        Task::GuestImage(arguments) => guest_image::command(&arguments),
        Task::Testbed(command) => testbed::command(command),
    }
}
