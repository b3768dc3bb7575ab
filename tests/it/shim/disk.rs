//! A disk that loses its power: what was synced stays; of what was not, chance decides, write by write and name by name,
//! and the last write that stays is torn. It knows of the state directory what the shim logged, and checks that against
//! what the directory really holds.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap},
    fs::{self, Permissions},
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use super::{
    Shim,
    steps::{self, Done, Step},
};
use crate::support::Dice;

/// What a disk writes whole or not at all.
const SECTOR: usize = 512;

/// What git writes there, in a process of its own, the shim does not see, and git does not sync it: a cut takes it all.
const SNAPSHOTS: &str = "snapshots";

/// What a power cut leaves of what was not on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stays {
    Nothing,
    /// Nothing, some or all, name by name and write by write; the last write that stays is torn.
    ByChance,
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    /// By its place in `files`.
    File(usize),
    Directory,
}

#[derive(Debug, Default)]
struct Content {
    mode: u32,
    /// What is on disk.
    kept: Vec<u8>,
    /// What is not, in its order, with its place in the log.
    open: Vec<(u64, Change)>,
}

#[derive(Debug, Clone)]
enum Change {
    Write { offset: usize, data: Vec<u8> },
    Cut(usize),
}

/// A name that came or went, in which directory. None: it went.
#[derive(Debug)]
struct Naming {
    at: u64,
    directory: PathBuf,
    names: Vec<(PathBuf, Option<Thing>)>,
}

type Names = BTreeMap<PathBuf, Thing>;

/// The disk beneath a state directory.
pub(crate) struct Disk {
    root: PathBuf,
    files: Vec<Content>,
    inodes: HashMap<u64, usize>,
    /// As the running system has them.
    names: Names,
    /// As they are on disk.
    kept: Names,
    open: Vec<Naming>,
    /// Bytes of the logs before this one.
    read: u64,
    dice: Dice,
}

impl Disk {
    /// A disk on which there is no state directory yet.
    pub(crate) fn new(root: &Path, dice: Dice) -> Self {
        Self {
            root: root.to_owned(),
            files: Vec::new(),
            inodes: HashMap::new(),
            names: Names::new(),
            kept: Names::new(),
            open: Vec::new(),
            read: 0,
            dice,
        }
    }

    /// Takes in what a daemon did that is dead by now. Gives what of the directory the log does not say.
    ///
    /// A death may come between a step and its line in the log; then the directory is believed.
    pub(crate) fn take_in(&mut self, shim: &Shim) -> BTreeSet<PathBuf> {
        let log = shim.take_log();
        for step in steps::read(&log) {
            self.follow(step);
        }
        self.read += log.len() as u64;
        self.compare()
    }

    /// Cuts the power. The directory is what was left when this returns.
    pub(crate) fn lose_power(&mut self, stays: Stays) {
        // Of a hundred, for names and for contents: that a name outlives its content is what many a disk does.
        let [names, contents] = match stays {
            Stays::Nothing => [0, 0],
            Stays::ByChance => [(); 2].map(|()| [0, 50, 100][self.dice.below(3) as usize]),
        };
        for naming in std::mem::take(&mut self.open) {
            if self.dice.below(100) < names {
                name(&mut self.kept, &naming.names);
            }
        }
        for file in &mut self.files {
            let mut stays: Vec<Change> = std::mem::take(&mut file.open)
                .into_iter()
                .filter(|_| self.dice.below(100) < contents)
                .map(|(_, change)| change)
                .collect();
            if let Some(Change::Write { offset, data }) = stays.last_mut() {
                tear(*offset, data, &mut self.dice);
            }
            stays.iter().for_each(|change| apply(&mut file.kept, change));
        }
        self.names = self.kept.clone();
        self.lay_out();
    }

    /// Whether something of the file of this name is not on disk.
    pub(crate) fn is_open(&self, name: &str) -> bool {
        match self.names.get(&self.root.join(name)) {
            Some(Thing::File(place)) => !self.files[*place].open.is_empty(),
            Some(Thing::Directory) | None => false,
        }
    }

    fn follow(&mut self, Step { at, done }: Step) {
        let at = self.read + at;
        match done {
            Done::Created { path, file, mode } => {
                let place = self.add(file, mode);
                self.rename_to(at, vec![(path, Some(Thing::File(place)))]);
            }
            Done::MadeDirectory { path } => {
                self.rename_to(at, vec![(path, Some(Thing::Directory))]);
            }
            Done::Unlinked { path } => self.rename_to(at, vec![(path, None)]),
            Done::Renamed { from, to } => {
                let thing = self.names.get(&from).copied();
                self.rename_to(at, vec![(to, thing), (from, None)]);
            }
            Done::Wrote { file, offset, data } => {
                self.change(at, file, Change::Write { offset, data });
            }
            Done::Cut { file, length } => self.change(at, file, Change::Cut(length)),
            Done::Synced { file, upto } => {
                let upto = self.read + upto;
                let file = &mut self.files[self.inodes[&file]];
                let open = std::mem::take(&mut file.open);
                let (kept, open) = open.into_iter().partition(|(at, _)| *at < upto);
                let kept: Vec<(u64, Change)> = kept;
                kept.iter().for_each(|(_, change)| apply(&mut file.kept, change));
                file.open = open;
            }
            Done::SyncedNames { directory, upto } => {
                let upto = self.read + upto;
                let is_kept = |naming: &Naming| naming.at < upto && naming.directory == directory;
                let open = std::mem::take(&mut self.open);
                let (kept, open) = open.into_iter().partition(is_kept);
                let kept: Vec<Naming> = kept;
                kept.iter().for_each(|naming| name(&mut self.kept, &naming.names));
                self.open = open;
            }
        }
    }

    fn add(&mut self, inode: u64, mode: u32) -> usize {
        self.files.push(Content { mode, ..Content::default() });
        // A number whose file is gone is given again.
        self.inodes.insert(inode, self.files.len() - 1);
        self.files.len() - 1
    }

    fn change(&mut self, at: u64, inode: u64, change: Change) {
        let place = *self.inodes.get(&inode).expect("a file that nobody made");
        self.files[place].open.push((at, change));
    }

    fn rename_to(&mut self, at: u64, names: Vec<(PathBuf, Option<Thing>)>) {
        name(&mut self.names, &names);
        let directory = names[0].0.parent().unwrap().to_owned();
        self.open.push(Naming { at, directory, names });
    }

    /// Believes the directory where the log is short of it.
    fn compare(&mut self) -> BTreeSet<PathBuf> {
        let mut found = BTreeMap::new();
        walk(&self.root, &mut found);
        let snapshots = self.root.join(SNAPSHOTS);
        let mut differ = BTreeSet::new();
        let gone: Vec<PathBuf> = self
            .names
            .keys()
            .filter(|path| !found.contains_key(*path) && !path.starts_with(&snapshots))
            .cloned()
            .collect();
        for path in gone {
            differ.insert(path.clone());
            self.rename_to(self.read, vec![(path, None)]);
        }
        for (path, file) in found {
            let thing = self.names.get(&path).copied();
            let Some((inode, mode, content)) = file else {
                if thing.is_none() {
                    differ.insert(path.clone());
                    self.rename_to(self.read, vec![(path, Some(Thing::Directory))]);
                }
                continue;
            };
            let place = match thing {
                Some(Thing::File(place)) if self.inodes.get(&inode) == Some(&place) => place,
                _ => {
                    differ.insert(path.clone());
                    let place = match self.inodes.get(&inode) {
                        Some(place) => *place,
                        None => self.add(inode, mode),
                    };
                    self.rename_to(self.read, vec![(path.clone(), Some(Thing::File(place)))]);
                    place
                }
            };
            let change = missed(&self.files[place].whole(), &content);
            if let Some(change) = change {
                differ.insert(path);
                self.files[place].open.push((self.read, change));
            }
        }
        // The next log begins behind what was made up for here.
        self.read += 1;
        differ
    }

    /// Makes the directory what is on disk now.
    fn lay_out(&mut self) {
        // git may be dying in it still, and have made something anew.
        while self.root.exists() {
            let _ = fs::remove_dir_all(&self.root);
        }
        self.inodes.clear();
        let files = std::mem::take(&mut self.files);
        // In the order of their paths: a directory comes before what is in it, or is lost with that.
        let kept = std::mem::take(&mut self.kept);
        for (path, thing) in kept {
            if path != self.root && !self.kept.contains_key(path.parent().unwrap()) {
                continue;
            }
            let thing = match thing {
                Thing::Directory => {
                    fs::create_dir(&path).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(0o700)).unwrap();
                    Thing::Directory
                }
                Thing::File(place) => {
                    let Content { mode, kept, .. } = &files[place];
                    fs::write(&path, kept).unwrap();
                    fs::set_permissions(&path, Permissions::from_mode(mode & 0o777)).unwrap();
                    let place = self.add(fs::metadata(&path).unwrap().ino(), *mode);
                    self.files[place].kept.clone_from(kept);
                    Thing::File(place)
                }
            };
            self.kept.insert(path, thing);
        }
        self.names = self.kept.clone();
    }
}

impl Content {
    /// As the running system sees it.
    fn whole(&self) -> Vec<u8> {
        let mut content = self.kept.clone();
        self.open.iter().for_each(|(_, change)| apply(&mut content, change));
        content
    }
}

fn name(names: &mut Names, changes: &[(PathBuf, Option<Thing>)]) {
    for (path, thing) in changes {
        match thing {
            Some(thing) => names.insert(path.clone(), *thing),
            None => names.remove(path),
        };
    }
}

fn apply(content: &mut Vec<u8>, change: &Change) {
    match change {
        Change::Cut(length) => content.resize(*length, 0),
        Change::Write { offset, data } => {
            let end = offset + data.len();
            // What lies between was never written, or is lost: zeros.
            content.resize(content.len().max(end), 0);
            content[*offset..end].copy_from_slice(data);
        }
    }
}

/// The one step that makes `known` of what there is, if they differ. It touches nothing else: what is on disk already
/// is not at stake again.
fn missed(known: &[u8], there: &[u8]) -> Option<Change> {
    if known == there {
        return None;
    }
    let differs = |at: &usize| known.get(*at) != there.get(*at);
    let first = (0..there.len()).find(differs);
    match first {
        None => Some(Change::Cut(there.len())),
        Some(first) => {
            let last = (first..there.len()).rfind(differs).unwrap_or(first);
            Some(Change::Write { offset: first, data: there[first..=last].to_vec() })
        }
    }
}

/// Leaves some sectors from the front, or all.
fn tear(offset: usize, data: &mut Vec<u8>, dice: &mut Dice) {
    let first = offset / SECTOR;
    let last = (offset + data.len()).div_ceil(SECTOR);
    let sectors = dice.below((last - first + 1) as u64) as usize;
    let end = (first + sectors) * SECTOR;
    data.truncate(end.saturating_sub(offset));
}

/// A file as it is found: inode, mode and content.
type Found = (u64, u32, Vec<u8>);

/// Directories, and files with inode, mode and content. Sockets are nothing that a disk keeps, and the index of the
/// database's log is memory.
fn walk(path: &Path, found: &mut BTreeMap<PathBuf, Option<Found>>) {
    let Ok(metadata) = fs::symlink_metadata(path) else { return };
    if metadata.is_dir() && !path.ends_with(SNAPSHOTS) {
        found.insert(path.to_owned(), None);
        fs::read_dir(path).unwrap().for_each(|entry| walk(&entry.unwrap().path(), found));
    } else if metadata.is_file() && !path.to_string_lossy().ends_with("-shm") {
        let content = fs::read(path).unwrap();
        found.insert(path.to_owned(), Some((metadata.ino(), metadata.mode(), content)));
    }
}
