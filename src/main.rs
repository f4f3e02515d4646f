//! The command line of Lancet: parse, dispatch, exit code.

#![forbid(unsafe_code)]
#![cfg_attr(not(test), warn(clippy::unwrap_used))]
#![cfg_attr(not(test), warn(clippy::disallowed_methods))]

mod cli;

use std::process::ExitCode;

use lancet::{Error, Kind};

use cli::Ending;

fn main() -> ExitCode {
    match cli::run() {
        Ok(Ending::Done) => ExitCode::SUCCESS,
        Ok(Ending::Failed) => ExitCode::from(1),
        Ok(Ending::Guarded) => ExitCode::from(3),
        Err(error) => {
            cli::print_error(&error);
            if let Some(code) = cli::exit_code() {
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
