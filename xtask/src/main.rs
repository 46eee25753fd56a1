//! What the README and `.ci/run` call. One enum, one module per task.

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

mod apt;
mod bench;
mod build;
mod demo;
mod leftovers;
mod libtest;
mod lint;
mod schemathesis;
mod setup;
mod sh;
mod test;
mod toolchain;
mod vm;

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", about = "Build, run, test and measure the TeleCluster worker")]
struct Args {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install what the other tasks need (they do it themselves for what they need)
    Setup {
        /// Only these; all when none is named
        sets: Vec<setup::Set>,
    },
    /// Build the agent with its eBPF programs
    Build {
        #[arg(long)]
        release: bool,
    },
    /// Build the agent and start it (root)
    Run {
        /// The agent's own arguments, after `--`
        #[arg(last = true)]
        args: Vec<OsString>,
    },
    /// Formatting, clippy, and a look at the compiled eBPF programs
    Lint,
    /// All checks and tests (root)
    Test(test::Options),
    /// The product in one minute, in a lab that vanishes (root)
    Demo(demo::Options),
    /// Measure packets, the API, or the programs (root)
    Bench(bench::Options),
    /// Run the tests under another kernel, in an emulated machine (root for the first set-up)
    VmTest(vm::Options),
}

fn main() -> ExitCode {
    let done = match Args::parse().task {
        Task::Setup { sets } => setup::main(&sets),
        Task::Build { release } => {
            build::agent(if release { build::Profile::Release } else { build::Profile::Dev })
                .map(|agent| sh::say(format!("built {}", agent.display())))
        }
        Task::Run { args } => build::exec(&args),
        Task::Lint => lint::main(),
        Task::Test(options) => test::main(&options),
        Task::Demo(options) => demo::main(&options),
        Task::Bench(options) => bench::main(&options),
        Task::VmTest(options) => vm::main(&options).map(|count| sh::say(count.to_string())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
