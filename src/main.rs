//! The command line of Lancet: parse, dispatch, exit code.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod cli;

use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use clap::Parser;
use lancet::{Error, Kind};

use cli::args::{Cli, Command};
use cli::commands::{self, Context, Ending};
use cli::interrupt;
use cli::ui::{self, Ui};

fn main() -> ExitCode {
    match parse().and_then(|cli| dispatch(&cli)) {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::from(1),
        Ok(Ending::Guarded) => ExitCode::from(3),
        Err(error) => {
            ui::print_error(&error);
            if let Some(code) = interrupt::exit_code() {
                return ExitCode::from(code);
            }
            ExitCode::from(match error.chain().find_map(|e| e.downcast_ref::<Error>()).map(Error::kind) {
                Some(Kind::Failed) => 1,
                Some(Kind::Guard) => 3,
                Some(Kind::Usage) | None => 2,
            })
        }
    }
}

/// Parses the arguments, with those of the config file before them.
fn parse() -> anyhow::Result<Cli> {
    let mut all: Vec<OsString> = std::env::args_os().collect();
    if let Some((path, command, at)) = cli::config::named_in(&all) {
        // right after the command's name, so that what was typed comes later and wins
        let extra = cli::config::arguments(&path, &command)?;
        all.splice(at..at, extra);
    }
    Ok(Cli::parse_from(all))
}

fn dispatch(cli: &Cli) -> anyhow::Result<Ending> {
    let cancelled = Arc::new(AtomicBool::new(false));
    interrupt::listen(Arc::clone(&cancelled))?;
    let context = Context { ui: Ui::new(cli.global.quiet), json: cli.global.json, cancelled };
    match &cli.command {
        Command::Demo(args) => cli::demo::demo(&context, args),
        Command::Run(args) => commands::run(&context, args),
        Command::Inspect(args) => commands::inspect(&context, args),
        Command::Collect(args) => commands::collect(&context, args),
        Command::Select(args) => commands::select(&context, args),
        Command::Sweep(args) => cli::sweep::sweep(&context, args),
        Command::Bake(args) => commands::bake(&context, args),
        Command::Verify(args) => commands::verify(&context, args),
        Command::Eval(args) => commands::eval(&context, args),
        Command::Runtime(args) => cli::runtime::runtime(&context, args),
    }
}
