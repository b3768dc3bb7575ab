//! Files that only their owner reads: those that hold a secret and are made once, whole and on disk or
//! not there; and those that are written anew.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
};

/// Gives the content of `path`; where there is no such file, makes it with what `fresh` gives.
///
/// Mode 0600. A crash in the middle leaves no file, or a whole one.
pub fn read_or_create(
    path: &Path,
    fresh: impl FnOnce() -> io::Result<Vec<u8>>,
) -> io::Result<Vec<u8>> {
    match fs::read(path) {
        Ok(content) => return Ok(content),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let content = fresh()?;
    let draft = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&draft)?;
    file.write_all(&content)?;
    file.sync_all()?;
    fs::rename(&draft, path)?;
    if let Some(directory) = path.parent() {
        fs::File::open(directory)?.sync_all()?;
    }
    Ok(content)
}

/// Writes `path` anew, whole or not at all. Mode 0600. Not synced: a power cut may leave the old one, or
/// none.
pub fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let draft = path.with_extension("new");
    let mut options = OpenOptions::new();
    options.create(true).truncate(true).write(true).mode(0o600);
    options.open(&draft)?.write_all(content)?;
    fs::rename(&draft, path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_made_once_also_where_an_earlier_making_was_cut_off() {
        let home = tempfile::tempdir().unwrap();
        let path = home.path().join("key");
        fs::write(home.path().join("key.new"), "").unwrap();
        assert_eq!(read_or_create(&path, || Ok(b"first".to_vec())).unwrap(), b"first");
        assert_eq!(read_or_create(&path, || Ok(b"second".to_vec())).unwrap(), b"first");
    }
}
