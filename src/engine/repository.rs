//! What a repository says of how to work on it (AGENTS.md and the like): read under the policy like any file, and offered to
//! the model as data that somebody wrote there. Only files that the configuration names.

use std::path::PathBuf;

use tokio_util::sync::CancellationToken;

use crate::{
    agents::repository,
    domain::{
        effect::{Effect, EffectResult, Lines},
        ids::{RoleName, ToolName},
        journal::{RepositoryTold, ToldFile},
        policy::Decision,
        run::Seat,
    },
    engine::World,
    ports::{Attempt, Company, Scene},
};

/// Longest piece of one file that is offered, in bytes: its head and its tail.
const FILE_BYTES: usize = 16 << 10;

/// Where the files are, and who is told of them.
pub(super) struct Reader {
    pub(super) run: String,
    pub(super) workspace: String,
    pub(super) role: RoleName,
    pub(super) seat: Seat,
}

/// Reads the files that are there. What is not there, or the policy does not let that role read, is not offered, and the
/// entry says why.
pub(super) async fn read(world: &World, names: &[String], reader: &Reader) -> RepositoryTold {
    let (mut files, mut texts) = (Vec::new(), Vec::new());
    for name in names {
        let (bytes, left_out) = match one(world, name, reader).await {
            Ok((text, bytes)) => {
                texts.push((name.as_str(), repository::cut(&text, FILE_BYTES)));
                (bytes, None)
            }
            Err(why) => (0, Some(why)),
        };
        files.push(ToldFile { path: name.clone(), bytes, left_out });
    }
    RepositoryTold { seat: reader.seat, files, text: repository::offered(&texts).into() }
}

async fn one(world: &World, name: &str, reader: &Reader) -> Result<(String, u64), String> {
    let policy = world.policies.current();
    let scene = Scene {
        workspace: PathBuf::from(&reader.workspace),
        program_directories: policy.program_directories.clone(),
        label: format!("{}-repository", reader.run),
        earlier: None,
    };
    let effect = Effect::ReadFile { path: name.to_owned(), lines: Lines::All };
    let resolved = world.sandbox.resolve(&scene, effect).await;
    let resolved = resolved.map_err(|error| crate::telemetry::chain(&error))?;
    // As if the agent had asked for it itself.
    let permit = match policy.decide(&reader.role, &ToolName::new("read_file"), resolved) {
        Decision::Allow(permit) => permit,
        Decision::Ask(ruling) | Decision::Deny(ruling) => {
            return Err(format!("{}: {}", ruling.rule, ruling.why));
        }
    };
    let stop = CancellationToken::new();
    let company = Company { stop: &stop, heard: &|_, _| {}, door: None };
    match world.sandbox.run(permit, Attempt::First, company).await {
        Ok(EffectResult::Read { content, file_bytes, lines: Some(_), .. }) => {
            Ok((String::from_utf8_lossy(&content.whole()).into_owned(), file_bytes))
        }
        Ok(_) => Err("it is not text".into()),
        Err(error) => Err(crate::telemetry::chain(&error)),
    }
}
