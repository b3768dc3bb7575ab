//! The client's program: flags to `ctl` to an exit code.

use std::process::ExitCode;

use agentd::ctl;
use clap::Parser as _;

fn main() -> ExitCode {
    let program = ctl::Program::parse();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return ctl::complain(&ctl::Failure::from(anyhow::Error::from(error))),
    };
    match runtime.block_on(ctl::run(program)) {
        Ok(exit) => ExitCode::from(exit as u8),
        Err(failure) => ctl::complain(&failure),
    }
}
