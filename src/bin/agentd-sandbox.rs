//! The launcher: confines one program, or one look at a tree of files, and sees all of it dead. The daemon
//! starts it; it is not for people. What it does is in `agentd::sandbox::inside`.

use std::process::ExitCode;

fn main() -> ExitCode {
    agentd::sandbox::inside::main()
}
