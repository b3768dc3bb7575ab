//! Reading a file: whole and bounded, or some of its lines. Blocking.

use std::{
    fs::File,
    io::{self, Read as _},
    os::{fd::OwnedFd, unix::fs::MetadataExt as _},
};

use rustix::fs::{FileType, OFlags};

use crate::{
    domain::{
        budget,
        effect::{Captured, EffectResult, Facts, Lines, WorkspacePath},
    },
    ports::{ResolveError, Scene},
    sandbox::{
        files::{beneath, real_path, regular, relative, reopen, unresolved},
        lines,
    },
};

/// A file to be read.
pub(super) struct ReadProof {
    path: WorkspacePath,
    file: OwnedFd,
    lines: Lines,
}

/// Finds a regular file beneath the workspace.
pub(super) fn resolve(
    scene: &Scene,
    workspace: &OwnedFd,
    path: &str,
    lines: Lines,
) -> Result<(Facts, ReadProof), ResolveError> {
    let relative = relative(scene, path)?;
    let file =
        beneath(workspace, relative, OFlags::PATH).map_err(|error| unresolved(path, error))?;
    let stat = rustix::fs::fstat(&file).map_err(|error| unresolved(path, error))?;
    regular(path, FileType::from_raw_mode(stat.st_mode))?;
    let real = real_path(workspace, &file)?;
    let facts =
        Facts::ReadFile { path: real.clone(), bytes: u64::try_from(stat.st_size).unwrap_or(0) };
    Ok((facts, ReadProof { path: real, file, lines }))
}

/// Reads a file, or some of its lines.
pub(super) fn read(proof: &ReadProof) -> EffectResult {
    let path = proof.path.clone();
    let content = match reopen(&proof.file).and_then(|file| read_bounded(&file)) {
        Ok(Bounded::Whole(content)) => content,
        Ok(Bounded::TooLarge(bytes)) => {
            let message = too_large(&path, bytes);
            return EffectResult::Failed { reason: FILE_TOO_LARGE, message };
        }
        Err(error) => {
            let message = format!("{path} cannot be read: {error}");
            return EffectResult::Failed { reason: "READ_FAILED", message };
        }
    };
    let file_bytes = content.len() as u64;
    match std::str::from_utf8(&content) {
        Ok(text) if !content.contains(&0) => {
            let (content, lines) = lines::select(text, proof.lines);
            EffectResult::Read { path, content, file_bytes, lines: Some(lines) }
        }
        Ok(_) | Err(_) => {
            EffectResult::Read { path, content: Captured::default(), file_bytes, lines: None }
        }
    }
}

/// What became of reading a file that may be too large.
pub(super) enum Bounded {
    Whole(Vec<u8>),
    TooLarge(u64),
}

/// Reads a file of at most [`budget::FILE_BYTES`].
pub(super) fn read_bounded(file: &File) -> io::Result<Bounded> {
    let bytes = file.metadata()?.size();
    if bytes > budget::FILE_BYTES {
        return Ok(Bounded::TooLarge(bytes));
    }
    let mut content = Vec::with_capacity(usize::try_from(bytes).unwrap_or(0));
    // It may grow while it is read.
    file.take(budget::FILE_BYTES + 1).read_to_end(&mut content)?;
    match content.len() as u64 {
        length if length > budget::FILE_BYTES => Ok(Bounded::TooLarge(length)),
        _ => Ok(Bounded::Whole(content)),
    }
}

/// Reason of a file that is larger than files may be.
pub(super) const FILE_TOO_LARGE: &str = "FILE_TOO_LARGE";

/// What the model is told of a file that is not read.
pub(super) fn too_large(path: &WorkspacePath, bytes: u64) -> String {
    format!(
        "{path} has {bytes} bytes; files of up to {} are taken. Look into it with search_files, or with \
         a command",
        budget::FILE_BYTES
    )
}
