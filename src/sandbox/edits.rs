//! An exact replacement in one file: whether it fits is known before anything is touched, and by the
//! hashes before and after it a lost attempt is told from one that was made. Blocking.

use std::{fs::File, os::fd::OwnedFd, sync::Arc};

use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::{Before, Edit, EditHashes, EffectResult, Facts, Places, WorkspacePath},
        hex::hex,
    },
    ports::{Attempt, ResolveError, Scene},
    sandbox::{
        files::{self, WriteProof},
        reads::{self, Bounded},
    },
};

/// A file to be edited.
pub(super) struct EditProof {
    write: WriteProof,
    plan: Plan,
}

/// What is to be done about an edit.
enum Plan {
    /// The file has this hash now; it is to become the proof's content.
    Make { before: String, replacements: u64 },
    /// A lost attempt has made it.
    AlreadyMade { replacements: u64 },
    /// It does not fit; nothing is touched. Told only to whom the policy lets edit.
    Unfit(Unfit),
}

/// Why an edit does not fit, as the model hears it.
struct Unfit {
    reason: &'static str,
    message: String,
}

/// Finds the file and works out what it would become.
pub(super) fn resolve(
    scene: &Scene,
    workspace: &OwnedFd,
    path: &str,
    edit: &Edit,
) -> Result<(Facts, EditProof), ResolveError> {
    let nothing: Arc<str> = "".into();
    let (_, mut write) = files::resolve_write(scene, workspace, path, nothing)?;
    let existing = files::open_existing(&write)
        .map_err(|error| {
            files::missing("READ_FAILED", format!("{path:?} cannot be read: {error}"))
        })?
        .ok_or_else(|| files::missing("NOT_FOUND", format!("{path:?} does not exist")))?;
    let plan = match (read(&existing, &write.path), &scene.earlier) {
        (Err(unfit), _) => Plan::Unfit(unfit),
        (Ok(text), Some(Facts::EditFile { hashes: Some(earlier), .. })) => {
            retake(&text, earlier, edit, &mut write)
        }
        (Ok(text), _) => plan(&text, edit, &mut write),
    };
    let hashes = match &plan {
        Plan::Make { before, replacements } => Some(EditHashes {
            before: before.clone(),
            after: write.sha256.clone(),
            replacements: *replacements,
        }),
        // What was allowed of the first attempt holds for finding that it was made.
        Plan::AlreadyMade { .. } => match &scene.earlier {
            Some(Facts::EditFile { hashes, .. }) => hashes.clone(),
            _ => None,
        },
        Plan::Unfit(_) => None,
    };
    let facts = Facts::EditFile { path: write.path.clone(), hashes };
    Ok((facts, EditProof { write, plan }))
}

/// Makes the edit, whole or not at all; on disk when it returns.
pub(super) fn edit(proof: EditProof, limit: u64) -> EffectResult {
    let EditProof { write, plan } = proof;
    let bytes = write.content.len() as u64;
    let edited = |replacements, before| EffectResult::Edited {
        path: write.path.clone(),
        bytes,
        replacements,
        before,
    };
    match plan {
        Plan::Unfit(Unfit { reason, message }) => EffectResult::Failed { reason, message },
        Plan::AlreadyMade { replacements } => edited(replacements, Before::AlreadyDone),
        Plan::Make { .. } if bytes > limit => EffectResult::Failed {
            reason: reads::FILE_TOO_LARGE,
            message: format!("{bytes} bytes are more than the {limit} that a file may have"),
        },
        Plan::Make { before, replacements } => match changed_meanwhile(&write, &before) {
            Ok(true) => EffectResult::Failed {
                reason: "CHANGED_MEANWHILE",
                message: format!("{} was changed meanwhile; read it again", write.path),
            },
            // The draft of a lost attempt is cleared away as by any second attempt.
            Ok(false) => match files::write_draft_and_rename(&write, Attempt::Again) {
                Ok(_) => edited(replacements, Before::Replaced),
                Err(error) => files::write_failed(&write.path, &error),
            },
            Err(error) => files::write_failed(&write.path, &error),
        },
    }
}

fn changed_meanwhile(write: &WriteProof, before: &str) -> std::io::Result<bool> {
    match files::open_existing(write)? {
        Some(file) => Ok(files::sha256_of(&file)? != before),
        None => Ok(true),
    }
}

fn read(file: &File, path: &WorkspacePath) -> Result<String, Unfit> {
    let unfit = |reason, message| Unfit { reason, message };
    match reads::read_bounded(file) {
        Ok(Bounded::Whole(content)) => String::from_utf8(content)
            .map_err(|_| unfit("NOT_TEXT", format!("{path} is not text: it is not UTF-8"))),
        Ok(Bounded::TooLarge(bytes)) => {
            Err(unfit(reads::FILE_TOO_LARGE, reads::too_large(path, bytes)))
        }
        Err(error) => Err(unfit("READ_FAILED", format!("{path} cannot be read: {error}"))),
    }
}

fn plan(text: &str, edit: &Edit, write: &mut WriteProof) -> Plan {
    let found = text.matches(&*edit.old).count() as u64;
    let unfit = |reason, message| Plan::Unfit(Unfit { reason, message });
    match (found, edit.places) {
        (0, _) => unfit("NO_MATCH", no_match(text, edit, &write.path)),
        (1, _) | (_, Places::All) => {
            let content = text.replace(&*edit.old, &edit.new);
            write.sha256 = sha256(&content);
            write.content = content.into();
            Plan::Make { before: sha256(text), replacements: found }
        }
        (more, Places::One) => unfit("SEVERAL_MATCHES", several(text, edit, &write.path, more)),
    }
}

/// What a second attempt has to do about a file that the first may have edited.
fn retake(text: &str, earlier: &EditHashes, edit: &Edit, write: &mut WriteProof) -> Plan {
    let now = sha256(text);
    if now == earlier.after {
        write.content = text.into();
        return Plan::AlreadyMade { replacements: earlier.replacements };
    }
    if now == earlier.before {
        return plan(text, edit, write);
    }
    Plan::Unfit(Unfit {
        reason: "OUTCOME_UNKNOWN",
        message: format!(
            "the daemon died during the edit, and {} was changed since by something else; read it \
             again",
            write.path
        ),
    })
}

/// Most places that are named.
const PLACES: usize = 10;

fn several(text: &str, edit: &Edit, path: &WorkspacePath, found: u64) -> String {
    let line = |at: usize| text[..at].matches('\n').count() + 1;
    let lines: Vec<String> =
        text.match_indices(&*edit.old).take(PLACES).map(|(at, _)| line(at).to_string()).collect();
    let more = if found as usize > PLACES { " and more" } else { "" };
    format!(
        "old_text stands in {path} {found} times, at lines {}{more}; take in lines around the place you \
         mean, or set replace_all",
        lines.join(", ")
    )
}

/// Says where the text stands almost, since that is what a model can mend.
fn no_match(text: &str, edit: &Edit, path: &WorkspacePath) -> String {
    let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    let first = edit.old.lines().find(|line| !line.trim().is_empty()).unwrap_or_default();
    let near = (1..).zip(text.lines()).find(|(_, line)| squeezed(line) == squeezed(first));
    match near {
        Some((number, line)) if line.trim_end_matches('\r') != first => format!(
            "old_text does not stand in {path}; line {number} differs from its first line only in white \
             space. Copy the text as read_file shows it"
        ),
        Some((number, _)) => format!(
            "old_text does not stand in {path}; its first line does, at line {number}, but what follows \
             differs. Read the file from there"
        ),
        None => {
            format!("old_text does not stand in {path}; read the file and copy the text exactly")
        }
    }
}

fn sha256(text: &str) -> String {
    hex(&Sha256::digest(text.as_bytes()))
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    use rustix::fs::{Mode, OFlags};

    use super::*;

    fn scene(workspace: &Path, earlier: Option<Facts>) -> Scene {
        Scene {
            workspace: workspace.to_owned(),
            program_directories: Vec::new(),
            label: "edit".into(),
            earlier,
        }
    }

    /// The edit that doubles a word, so that making it twice would show.
    fn attempt(workspace: &Path, earlier: Option<Facts>) -> (Facts, EffectResult) {
        let edit = Edit { old: "a".into(), new: "aa".into(), places: Places::One };
        let flags = OFlags::PATH | OFlags::DIRECTORY;
        let directory = rustix::fs::open(workspace, flags, Mode::empty()).unwrap();
        let scene = scene(workspace, earlier);
        let resolved = resolve(&scene, &directory, "file", &edit);
        let (facts, proof) = resolved.unwrap_or_else(|error| panic!("{error}"));
        (facts, self::edit(proof, 1 << 20))
    }

    fn before(result: &EffectResult) -> Option<Before> {
        match result {
            EffectResult::Edited { before, replacements: 1, .. } => Some(*before),
            _ => None,
        }
    }

    #[test]
    fn an_edit_that_a_crash_cut_off_is_made_once_whenever_that_was() {
        let home = tempfile::tempdir().unwrap();
        let file = home.path().join("file");
        fs::write(&file, "a\n").unwrap();
        let (intent, made) = attempt(home.path(), None);
        assert_eq!(before(&made), Some(Before::Replaced));
        assert_eq!(fs::read_to_string(&file).unwrap(), "aa\n");

        let (_, again) = attempt(home.path(), Some(intent.clone()));
        assert_eq!(before(&again), Some(Before::AlreadyDone), "it was made before the crash");
        assert_eq!(fs::read_to_string(&file).unwrap(), "aa\n");

        fs::write(&file, "a\n").unwrap();
        let (_, again) = attempt(home.path(), Some(intent.clone()));
        assert_eq!(before(&again), Some(Before::Replaced), "it was not made before the crash");
        assert_eq!(fs::read_to_string(&file).unwrap(), "aa\n");

        fs::write(&file, "a, by somebody else\n").unwrap();
        let (_, again) = attempt(home.path(), Some(intent));
        let EffectResult::Failed { reason, .. } = again else { panic!("{again:?}") };
        assert_eq!(reason, "OUTCOME_UNKNOWN");
        assert_eq!(fs::read_to_string(&file).unwrap(), "a, by somebody else\n");
    }
}
