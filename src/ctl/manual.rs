//! `agentctl completion` and `agentctl man`: made from the commands themselves; no daemon is asked.

use std::{
    io::{self, Write as _},
    path::{Path, PathBuf},
};

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::ctl::{Exit, Failure, Program};

/// Prints a completion script.
pub(super) fn completion(shell: Shell) -> Result<Exit, Failure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Program::command(), "agentctl", &mut script);
    io::stdout().write_all(&script)?;
    Ok(Exit::Done)
}

/// Prints the manual page of the program, or writes one for each command into a directory.
pub(super) fn man(directory: Option<PathBuf>) -> Result<Exit, Failure> {
    let mut program = Program::command();
    program.build();
    match directory {
        None => {
            let mut page = Vec::new();
            clap_mangen::Man::new(program).render(&mut page)?;
            io::stdout().write_all(&page)?;
        }
        Some(directory) => {
            std::fs::create_dir_all(&directory)?;
            write_pages(&directory, &program)?;
        }
    }
    Ok(Exit::Done)
}

fn write_pages(directory: &Path, command: &clap::Command) -> io::Result<()> {
    let name = command.get_display_name().unwrap_or_else(|| command.get_name()).replace(' ', "-");
    let mut page = Vec::new();
    clap_mangen::Man::new(command.clone()).render(&mut page)?;
    std::fs::write(directory.join(format!("{name}.1")), page)?;
    let below = command.get_subcommands().filter(|below| below.get_name() != "help");
    for command in below {
        write_pages(directory, command)?;
    }
    Ok(())
}
