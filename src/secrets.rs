//! Secrets: values that nothing prints, and where they come from: the environment, a file, a command.
//! A secret never stands in a configuration itself.

use std::{
    io::{self, Read as _},
    path::PathBuf,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::event::{PollFd, PollFlags, Timespec};
pub use secrecy::{ExposeSecret, SecretString as Secret};

/// Longest secret that is read, in bytes.
const SECRET_BYTES: usize = 64 << 10;
/// How long a command may take to tell one.
const PATIENCE: Duration = Duration::from_secs(10);

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    Environment(String),
    File(PathBuf),
    /// A program with its arguments; no shell.
    Command(Vec<String>),
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Environment(name) => write!(f, "environment {name}"),
            Self::File(path) => write!(f, "file {}", path.display()),
            // Its arguments may say more than is good to repeat.
            Self::Command(argv) => write!(f, "command {}", argv.first().map_or("", String::as_str)),
        }
    }
}

/// Reads a secret, without the white space around it. `variable` reads the environment.
///
/// Blocking, for at most 10 s. Errors name the source and what to do, and never what was read.
pub fn read(
    source: &Source,
    variable: impl FnOnce(&str) -> Option<String>,
) -> Result<Secret, String> {
    let text = match source {
        Source::Environment(name) => {
            variable(name).ok_or_else(|| format!("the variable {name} is not set"))?
        }
        Source::File(path) => {
            let file = std::fs::File::open(path)
                .map_err(|error| format!("{} cannot be opened: {error}", path.display()))?;
            let bytes = bounded(file).map_err(|error| format!("{}: {error}", path.display()))?;
            text(bytes).map_err(|error| format!("{} {error}", path.display()))?
        }
        Source::Command(argv) => from_command(argv)?,
    };
    match text.trim() {
        "" => Err(format!("the {source} holds no secret: it is empty")),
        secret => Ok(Secret::from(secret.to_owned())),
    }
}

fn bounded(reader: impl io::Read) -> Result<Vec<u8>, String> {
    let mut bytes = Vec::new();
    let limit = SECRET_BYTES as u64 + 1;
    reader.take(limit).read_to_end(&mut bytes).map_err(|error| error.to_string())?;
    match bytes.len() > SECRET_BYTES {
        true => Err("is longer than 64 KiB, which no secret is".into()),
        false => Ok(bytes),
    }
}

fn text(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|_| "is not text in UTF-8".into())
}

fn from_command(argv: &[String]) -> Result<String, String> {
    let (program, words) = argv.split_first().ok_or("the command is empty")?;
    let mut child = Command::new(program)
        .args(words)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        // What it complains of may hold what it knows.
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| format!("the command {program} cannot be started: {error}"))?;
    let told = wait_for(&mut child);
    if told.is_err() {
        let _ = child.kill();
    }
    let status = child.wait();
    let bytes = told.map_err(|error| format!("the command {program} {error}"))?;
    match status {
        Ok(status) if status.success() => {
            text(bytes).map_err(|error| format!("what the command {program} wrote {error}"))
        }
        Ok(status) => Err(format!("the command {program} ended with {status}; run it by hand")),
        Err(error) => Err(format!("the command {program} was lost: {error}")),
    }
}

/// All that it writes, once it has closed its output.
#[expect(clippy::disallowed_methods, reason = "nothing has started yet that could give a clock")]
fn wait_for(child: &mut Child) -> Result<Vec<u8>, String> {
    let mut out = child.stdout.take().ok_or("has no output")?;
    let begun = Instant::now();
    let mut bytes = Vec::new();
    loop {
        let left = PATIENCE.saturating_sub(begun.elapsed());
        if left.is_zero() {
            return Err("told nothing within 10 s and was ended".into());
        }
        let timeout = Timespec {
            tv_sec: i64::try_from(left.as_secs()).unwrap_or(10),
            tv_nsec: i64::from(left.subsec_nanos()),
        };
        let mut events = [PollFd::new(&out, PollFlags::IN)];
        match rustix::event::poll(&mut events, Some(&timeout)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => continue,
            Ok(_) => {}
            Err(error) => return Err(format!("cannot be heard: {error}")),
        }
        let mut buffer = [0; 4096];
        match out.read(&mut buffer).map_err(|error| format!("cannot be heard: {error}"))? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
        if bytes.len() > SECRET_BYTES {
            return Err("wrote more than 64 KiB, which no secret is".into());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(script: &str) -> Result<Secret, String> {
        let argv = ["sh", "-c", script].map(str::to_owned).to_vec();
        read(&Source::Command(argv), |_| None)
    }

    #[test]
    fn a_secret_comes_from_the_environment_a_file_or_a_command_and_is_never_shown() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        std::fs::write(&path, "from-file\n").unwrap();
        let from_file = read(&Source::File(path), |_| None).unwrap();
        let variable = |name: &str| (name == "KEY").then(|| " from-environment ".to_owned());
        let from_environment = read(&Source::Environment("KEY".into()), variable).unwrap();
        let from_command = command("echo from-command").unwrap();
        let secrets = [&from_file, &from_environment, &from_command];
        let exposed = secrets.map(|secret| secret.expose_secret());
        assert_eq!(exposed, ["from-file", "from-environment", "from-command"]);
        assert!(!format!("{secrets:?}").contains("from-"));
    }

    #[test]
    fn a_source_that_tells_nothing_says_so_and_repeats_nothing() {
        let failing = command("echo hunter2; echo hunter2 >&2; exit 3").unwrap_err();
        assert!(failing.contains("exit status: 3") && !failing.contains("hunter2"), "{failing}");
        assert!(command("true").unwrap_err().contains("is empty"));
        assert!(command("head -c 100000 /dev/zero").unwrap_err().contains("more than 64 KiB"));
        let missing = Source::Command(vec!["/no/such/program".into()]);
        assert!(read(&missing, |_| None).unwrap_err().contains("cannot be started"));
        assert!(read(&Source::Environment("NO".into()), |_| None).unwrap_err().contains("not set"));
    }
}
