//! What a workspace's files were at a moment, and what changed since: trees of a git repository that is
//! agentd's own, in the state directory. The workspace's repository is not asked: neither its
//! configuration, which can name programs, nor its objects, which a tool could have written, have a say
//! in what a diff shows. Its `.gitattributes` have, as far as they need no program.
//!
//! git itself runs under the launcher, like any program.

use std::{
    collections::BTreeMap,
    fs, io,
    os::fd::{AsFd as _, OwnedFd},
    path::{Path, PathBuf},
    sync::atomic::{AtomicU64, Ordering},
};

use rustix::fs::AtFlags;
use sha2::{Digest as _, Sha256};

use crate::{
    domain::{
        effect::{Exit, Isolation, Ran},
        hex::hex,
        ids::TreeId,
        policy::{Limits, Orders},
    },
    ports::{Keeping, PatchForm, Scene, SnapshotError},
    sandbox::{
        launcher::Ended,
        order::Access,
        programs::{Job, LaunchProof, Programs},
    },
};

/// Where the repositories lie in the state directory: that of snapshots, and that of copies, byte for byte.
const DIRECTORY: &str = "snapshots";
const COPIES: &str = "copies";
/// As git writes it; compressed little, since it is read seldom.
const CONFIG: &str = "[core]\n\trepositoryformatversion = 0\n\tbare = true\n\tlooseCompression = 1\n\
                      \tfsmonitor = false\n\tautocrlf = false\n\tsafecrlf = false\n\
                      \tprecomposeUnicode = false\n[gc]\n\tauto = 0\n";
/// For the scripts below. `relink`: repositories within are links in the index; those of the time before are dropped, since
/// git would ask such a repository, with its own configuration, whether it has changed. `hidden`: takes in each `.gitignore`
/// that ignores itself, unless all that is around it is ignored; or a run could hide files by one, or have a person's taken
/// for its own by removing one.
const FUNCTIONS: &str = "relink() { git ls-files --stage -z \
    | sed -z -n 's/^160000 [0-9a-f]* 0\\t/0 0000000000000000000000000000000000000000 0\\t/p' \
    | git update-index -z --index-info; }; \
    hidden() { git status --porcelain -z --ignored=matching --untracked-files=all --ignore-submodules=all \
       -- ':(glob)**/.gitignore' \
    | sed -z -n 's/^!! \\(\\(.*\\/\\)\\?\\.gitignore\\)$/\\1/p' | git update-index --add -z --stdin; }; ";
/// Takes everything that git would take in, and says which tree that is; into a copy, also what is `hidden`.
///
/// The index is a copy of the one that was kept, which takes its place afterwards: several may look at one workspace at
/// the same time, and one that was killed leaves no lock in anybody's way. Its time goes with it, by which git knows which
/// files may have changed since.
const SNAPSHOT: &str = "if [ -e \"$KEPT\" ]; then cp -p \"$KEPT\" \"$GIT_INDEX_FILE\"; fi; \
    relink && git add --all --ignore-errors -- . && { [ -z \"$BYTES\" ] || hidden; } \
    && git write-tree && mv -f \"$GIT_INDEX_FILE\" \"$KEPT\"; \
    status=$?; rm -f \"$GIT_INDEX_FILE\" \"$GIT_INDEX_FILE.lock\"; exit $status";
/// Gives every file back that a copy has, and removes those that it has not and that git would take in.
///
/// What is to be ignored is what the copy says, and not what the run made of it: its `.gitignore` files come back first, or
/// files of a person's that they name would be taken for the run's. Twice, since files in the way of one may have hidden
/// others. What lies below a repository that was there before is nobody's business, also where it is no repository any more.
/// One path that git cannot take in does not keep the others from coming back; in the end it is looked at whether all have:
/// git warns of what it cannot remove, and calls that well.
const RESTORE: &str = "take() { git add --all --ignore-errors --pathspec-from-file=\"$GIT_INDEX_FILE.paths\" \
    --pathspec-file-nul; added=$?; hidden && return $added; }; \
    back() { take; git read-tree --reset -u \"$TREE\"; }; \
    git read-tree \"$TREE\" \
    && { printf '.\\0'; git ls-tree -r -z \"$TREE\" \
       | sed -z -n 's/^160000 commit [0-9a-f]*\\t/:(exclude,literal)/p'; } >\"$GIT_INDEX_FILE.paths\" \
    && git ls-files -z -- ':(glob)**/.gitignore' | git checkout-index -f -z --stdin \
    && back && back && take && test \"$(git write-tree)\" = \"$TREE\"; \
    status=$?; rm -f \"$GIT_INDEX_FILE\" \"$GIT_INDEX_FILE.lock\" \"$GIT_INDEX_FILE.paths\"; exit $status";
/// Of copies, above what the workspace says of its files: each comes back byte for byte.
const ATTRIBUTES: &str = "* -text -ident -filter -working-tree-encoding\n";
/// The changes from one tree to the other. `--text` also where `.gitattributes` say that a file be not shown.
const DIFF: &str = "git diff $FORM --full-index --no-renames --no-color --no-ext-diff \
                    --no-textconv \"$BEFORE\" \"$AFTER\"";

/// Snapshots of one state directory.
#[derive(Debug)]
pub(super) struct Snapshots {
    repository: PathBuf,
    copies: PathBuf,
    /// How many were taken, so that each has an index of its own.
    taken: AtomicU64,
}

impl Snapshots {
    pub(super) fn new(state_directory: &Path) -> Self {
        let repository = state_directory.join(DIRECTORY);
        let copies = state_directory.join(COPIES);
        remove_left_indexes(&repository);
        remove_left_indexes(&copies);
        Self { repository, copies, taken: AtomicU64::new(0) }
    }

    fn repository(&self, keeping: Keeping) -> &Path {
        match keeping {
            Keeping::AsGitWould => &self.repository,
            Keeping::Bytes => &self.copies,
        }
    }

    /// What to launch to take a snapshot. Blocking.
    pub(super) fn take(
        &self,
        scene: &Scene,
        limits: Limits,
        workspace: OwnedFd,
        keeping: Keeping,
    ) -> Result<(LaunchProof, Orders), SnapshotError> {
        if rustix::fs::statat(workspace.as_fd(), ".git", AtFlags::SYMLINK_NOFOLLOW).is_err() {
            return Err(SnapshotError::NotARepository);
        }
        self.prepare(keeping).map_err(|source| SnapshotError::Store { source })?;
        let work = (workspace, Access::ReadOnly, keeping);
        self.launch(scene, limits, work, SNAPSHOT, BTreeMap::new())
    }

    /// What to launch to give a snapshot's files back. Blocking.
    pub(super) fn restore(
        &self,
        scene: &Scene,
        limits: Limits,
        workspace: OwnedFd,
        tree: &TreeId,
    ) -> Result<(LaunchProof, Orders), SnapshotError> {
        let more = BTreeMap::from([("TREE".to_owned(), tree.to_string())]);
        let work = (workspace, Access::ReadWrite, Keeping::Bytes);
        self.launch(scene, limits, work, RESTORE, more)
    }

    /// What to launch to tell two snapshots apart. Blocking.
    pub(super) fn compare(
        &self,
        scene: &Scene,
        limits: Limits,
        workspace: OwnedFd,
        (before, after, form): (&TreeId, &TreeId, PatchForm),
    ) -> Result<(LaunchProof, Orders), SnapshotError> {
        let form = match form {
            PatchForm::Applicable => "--binary",
            PatchForm::Text => "--text",
        };
        let more = [
            ("BEFORE", before.to_string()),
            ("AFTER", after.to_string()),
            ("FORM", form.to_owned()),
        ];
        let more = more.map(|(name, value)| (name.to_owned(), value));
        let work = (workspace, Access::ReadOnly, Keeping::AsGitWould);
        self.launch(scene, limits, work, DIFF, more.into())
    }

    fn launch(
        &self,
        scene: &Scene,
        limits: Limits,
        (workspace, access, keeping): (OwnedFd, Access, Keeping),
        script: &str,
        more: BTreeMap<String, String>,
    ) -> Result<(LaunchProof, Orders), SnapshotError> {
        let shell = Programs::find(scene, "sh").ok_or(SnapshotError::NoGit)?;
        Programs::find(scene, "git").ok_or(SnapshotError::NoGit)?;
        let proof = LaunchProof {
            workspace,
            path: scene.workspace.display().to_string(),
            access,
            program: None,
            writable: vec![self.repository(keeping).display().to_string()],
            as_owner: false,
            label: format!("{}-snapshot", scene.label),
            job: Job::Program { executable: shell, input: None },
        };
        let mut environment = self.environment(scene, keeping);
        environment.extend(more);
        let script = format!("{FUNCTIONS}{script}");
        let argv = ["sh", "-c", &script].map(str::to_owned).to_vec();
        let (paths, read_only, protected) = (Vec::new(), Vec::new(), Vec::new());
        let (least_isolation, grant) = (Isolation::Landlock, None);
        let orders = Orders {
            limits,
            argv,
            environment,
            paths,
            read_only,
            protected,
            least_isolation,
            grant,
        };
        Ok((proof, orders))
    }

    fn environment(&self, scene: &Scene, keeping: Keeping) -> BTreeMap<String, String> {
        let repository = self.repository(keeping).display();
        let own = format!("{}-{}", std::process::id(), self.taken.fetch_add(1, Ordering::Relaxed));
        let bytes = if keeping == Keeping::Bytes { "1" } else { "" };
        // Kept from run to run: a file that looks unchanged need not be read again. One run at a time
        // has a workspace.
        let workspace = hex(&Sha256::digest(scene.workspace.as_os_str().as_encoded_bytes())[..8]);
        BTreeMap::from(
            [
                ("PATH", scene.program_directories.join(":")),
                ("HOME", "/nonexistent".into()),
                ("LANG", "C.UTF-8".into()),
                ("BYTES", bytes.to_owned()),
                ("GIT_DIR", repository.to_string()),
                ("GIT_WORK_TREE", ".".into()),
                ("KEPT", format!("{repository}/index-{workspace}")),
                ("GIT_INDEX_FILE", format!("{repository}/index-{workspace}-{own}")),
                ("GIT_CONFIG_NOSYSTEM", "1".into()),
                ("GIT_CONFIG_GLOBAL", "/dev/null".into()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        )
    }

    /// Makes the repository where there is none.
    fn prepare(&self, keeping: Keeping) -> io::Result<()> {
        let repository = self.repository(keeping);
        let head = repository.join("HEAD");
        if head.exists() {
            return Ok(());
        }
        for directory in ["objects", "refs"] {
            fs::create_dir_all(repository.join(directory))?;
        }
        fs::write(repository.join("config"), CONFIG)?;
        if keeping == Keeping::Bytes {
            fs::create_dir_all(repository.join("info"))?;
            fs::write(repository.join("info/attributes"), ATTRIBUTES)?;
        }
        // Last: with it, git takes the directory for a repository.
        fs::write(head, "ref: refs/heads/none\n")
    }
}

/// What snapshots of dead daemons left behind, locks among it. Nobody misses it, and it is in nobody's way.
fn remove_left_indexes(repository: &Path) {
    let Ok(found) = fs::read_dir(repository) else { return };
    for file in found.flatten() {
        let name = file.file_name();
        let is_left = name
            .to_str()
            .and_then(|name| name.strip_prefix("index-"))
            .is_some_and(|rest| rest.contains(['-', '.']));
        if is_left {
            let _ = fs::remove_file(file.path());
        }
    }
}

/// The tree that a snapshot is.
pub(super) fn tree(ended: Ended) -> Result<TreeId, SnapshotError> {
    let said = output(ended)?;
    let said = String::from_utf8_lossy(&said.stdout.head).trim().to_owned();
    let is_tree =
        matches!(said.len(), 40 | 64) && said.bytes().all(|byte| byte.is_ascii_hexdigit());
    match is_tree {
        true => Ok(TreeId::new(said)),
        false => Err(SnapshotError::Failed { message: format!("git named no tree: {said:?}") }),
    }
}

/// Whether it is over, and well.
pub(super) fn done(ended: Ended) -> Result<(), SnapshotError> {
    output(ended).map(drop)
}

/// The patch that a comparison gave.
pub(super) fn patch(ended: Ended, most: usize) -> Result<Vec<u8>, SnapshotError> {
    let ran = output(ended)?;
    match ran.stdout.dropped {
        0 => Ok(ran.stdout.whole()),
        _ => Err(SnapshotError::TooLarge { most }),
    }
}

fn output(ended: Ended) -> Result<Ran, SnapshotError> {
    let failed = |message: String| Err(SnapshotError::Failed { message });
    let ran = match ended {
        Ended::Ran(ran) => ran,
        Ended::NotStarted(message) | Ended::TooWeak(message) => return failed(message),
    };
    match ran.exit {
        Exit::Code(0) => Ok(*ran),
        Exit::TimedOut => failed("git took too long".into()),
        Exit::OutOfMemory => failed("git wanted too much memory".into()),
        Exit::CpuTime => failed("git took too much CPU time".into()),
        Exit::Processes => failed("git wanted too many processes".into()),
        Exit::Output => failed("git wrote more than a program may".into()),
        Exit::Code(_) | Exit::Signal(_) | Exit::Stopped => {
            let words: String =
                String::from_utf8_lossy(&ran.stderr.head).chars().take(500).collect();
            failed(format!("git failed: {}", words.trim()))
        }
    }
}
