//! What a tree is about: languages, layout, sizes, entry points, latest commits.

use std::{
    collections::BTreeMap,
    io::Read as _,
    os::fd::{AsRawFd as _, BorrowedFd},
    os::unix::process::CommandExt as _,
    process::{Command, Stdio},
};

use crate::{
    domain::tree::{
        Commit, Directory, EntryKind, EntryPoint, Ignored, Incomplete, Language, ListedEntry,
        Summary, SummaryQuery, TOO_LONG, TreeAnswer,
    },
    sandbox::walk::{Go, Tree, list},
};

/// Most rows of each list, before the whole is made to fit.
const ROWS: usize = 50;
const LARGEST: usize = 5;
const COMMITS: &str = "10";
/// Most bytes that are read of what git says.
const GIT_BYTES: u64 = 16 << 10;

/// Languages by the extensions of their files.
const LANGUAGES: [(&str, &[&str]); 36] = [
    ("Rust", &["rs"]),
    ("Python", &["py", "pyi"]),
    ("JavaScript", &["js", "jsx", "mjs", "cjs"]),
    ("TypeScript", &["ts", "tsx", "mts", "cts"]),
    ("Go", &["go"]),
    ("C", &["c", "h"]),
    ("C++", &["cc", "cpp", "cxx", "hpp", "hh", "hxx"]),
    ("C#", &["cs"]),
    ("Java", &["java"]),
    ("Kotlin", &["kt", "kts"]),
    ("Swift", &["swift"]),
    ("Objective-C", &["m", "mm"]),
    ("Ruby", &["rb"]),
    ("PHP", &["php"]),
    ("Scala", &["scala"]),
    ("Haskell", &["hs"]),
    ("OCaml", &["ml", "mli"]),
    ("Elixir", &["ex", "exs"]),
    ("Erlang", &["erl", "hrl"]),
    ("Clojure", &["clj", "cljs", "cljc"]),
    ("Lua", &["lua"]),
    ("Perl", &["pl", "pm"]),
    ("R", &["r"]),
    ("Julia", &["jl"]),
    ("Dart", &["dart"]),
    ("Zig", &["zig"]),
    ("Shell", &["sh", "bash", "zsh"]),
    ("SQL", &["sql"]),
    ("HTML", &["html", "htm"]),
    ("CSS", &["css", "scss", "sass", "less"]),
    ("Vue", &["vue"]),
    ("Protocol Buffers", &["proto"]),
    ("YAML", &["yaml", "yml"]),
    ("TOML", &["toml"]),
    ("JSON", &["json"]),
    ("Markdown", &["md", "markdown"]),
];

/// Files that say how a project is built or where it starts.
const ENTRY_POINTS: [(&str, &str); 26] = [
    ("Cargo.toml", "Cargo package"),
    ("package.json", "npm package"),
    ("pyproject.toml", "Python project"),
    ("setup.py", "Python package"),
    ("requirements.txt", "Python requirements"),
    ("go.mod", "Go module"),
    ("pom.xml", "Maven project"),
    ("build.gradle", "Gradle project"),
    ("build.gradle.kts", "Gradle project"),
    ("CMakeLists.txt", "CMake project"),
    ("meson.build", "Meson project"),
    ("Makefile", "make targets"),
    ("justfile", "just recipes"),
    ("Dockerfile", "container image"),
    ("docker-compose.yaml", "Compose stack"),
    ("compose.yaml", "Compose stack"),
    ("Gemfile", "Ruby bundle"),
    ("mix.exs", "Mix project"),
    ("composer.json", "Composer package"),
    ("main.rs", "main program"),
    ("main.go", "main program"),
    ("main.py", "main program"),
    ("__main__.py", "main program"),
    ("manage.py", "Django project"),
    ("README.md", "read me"),
    ("AGENTS.md", "words to agents"),
];

pub(super) fn summarize(
    tree: &Tree<'_>,
    query: &SummaryQuery,
    git: Option<BorrowedFd<'_>>,
) -> TreeAnswer {
    let mut count = Count::default();
    let unfinished = tree.walk(Ignored::LeaveOut, None, |found| {
        if found.kind.is_file() {
            let bytes = list::size(tree, &found.path).unwrap_or(0);
            count.file(&found.path, found.depth, bytes);
        }
        Go::On
    });
    let commits = git.map(commits).unwrap_or_default();
    let mut summary = count.into_summary(tree.shown_path(), commits);
    summary.incomplete = unfinished;
    fit(&mut summary, query.bytes);
    TreeAnswer::Summary(summary)
}

#[derive(Default)]
struct Count {
    files: u64,
    bytes: u64,
    languages: BTreeMap<&'static str, (u64, u64)>,
    directories: BTreeMap<String, (u64, u64)>,
    entry_points: Vec<EntryPoint>,
    largest: Vec<(u64, String)>,
}

impl Count {
    fn file(&mut self, path: &str, depth: usize, bytes: u64) {
        let add = |(files, sum): &mut (u64, u64)| {
            *files += 1;
            *sum += bytes;
        };
        self.files += 1;
        self.bytes += bytes;
        let (above, name) = path.rsplit_once('/').unwrap_or(("", path));
        let extension = name.rsplit_once('.').map(|(_, extension)| extension.to_ascii_lowercase());
        let language = extension.and_then(|extension| {
            LANGUAGES.iter().find(|(_, known)| known.contains(&extension.as_str()))
        });
        if let Some((language, _)) = language {
            add(self.languages.entry(language).or_default());
        }
        // The directories between the one that is looked at and the file, down to two levels.
        let parts: Vec<&str> = path.split('/').collect();
        let base = parts.len() - depth;
        for level in 1..depth.min(3) {
            add(self.directories.entry(parts[..base + level].join("/")).or_default());
        }
        let what = ENTRY_POINTS.iter().find(|(known, _)| *known == name);
        let in_bin = above.rsplit('/').next() == Some("bin") && path.ends_with(".rs");
        let what = what.map(|(_, what)| *what).or(in_bin.then_some("main program"));
        if let Some(what) = what {
            self.entry_points.push(EntryPoint { path: path.into(), what: what.into() });
        }
        self.largest.push((bytes, path.into()));
        self.largest.sort_by(|a, b| b.cmp(a));
        self.largest.truncate(LARGEST);
    }

    fn into_summary(self, path: String, commits: Vec<Commit>) -> Summary {
        let mut languages: Vec<Language> = self
            .languages
            .into_iter()
            .map(|(name, (files, bytes))| Language { name: name.into(), files, bytes })
            .collect();
        languages.sort_by_key(|language| std::cmp::Reverse(language.bytes));
        let directory =
            |(path, (files, bytes)): (String, (u64, u64))| Directory { path, files, bytes };
        let listed =
            |(bytes, path)| ListedEntry { path, kind: EntryKind::File, bytes: Some(bytes) };
        let mut entry_points = self.entry_points;
        // Those at the top say most.
        entry_points.sort_by_key(|point| point.path.matches('/').count());
        Summary {
            path,
            files: self.files,
            bytes: self.bytes,
            languages,
            layout: self.directories.into_iter().map(directory).collect(),
            entry_points,
            largest: self.largest.into_iter().map(listed).collect(),
            commits,
            incomplete: None,
        }
    }
}

/// Cuts the lists, the longest first, until the whole is no longer than `most` bytes.
fn fit(summary: &mut Summary, most: usize) {
    let mut rows = ROWS;
    loop {
        let cut = [
            shorten(&mut summary.layout, rows),
            shorten(&mut summary.entry_points, rows),
            shorten(&mut summary.languages, rows),
            shorten(&mut summary.commits, rows),
        ];
        if cut.contains(&Cut::Yes) && summary.incomplete.is_none() {
            let message = "long lists are cut; raise max_bytes, or summarize a directory below";
            summary.incomplete = Some(Incomplete::new(TOO_LONG, message));
        }
        let length = serde_json::to_string(summary).map_or(0, |text| text.len());
        if length <= most || rows == 0 {
            return;
        }
        rows = rows * 3 / 4;
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Cut {
    Yes,
    No,
}

fn shorten<T>(rows: &mut Vec<T>, most: usize) -> Cut {
    let cut = if rows.len() > most { Cut::Yes } else { Cut::No };
    rows.truncate(most);
    cut
}

/// The latest commits of the workspace's own repository; none where there is none.
fn commits(git: BorrowedFd<'_>) -> Vec<Commit> {
    // What a repository could name to be run is off: a monitor of files, a checker of signatures.
    let child = Command::new(format!("/proc/self/fd/{}", git.as_raw_fd()))
        .arg0("git")
        .args(["-c", "core.fsmonitor=false", "-c", "log.showSignature=false"])
        .args(["-c", "safe.directory=*", "--no-pager", "log", "--no-show-signature"])
        .args(["--no-ext-diff", "--no-textconv", "--date=short", "--format=%h%x09%ad%x09%s"])
        .args(["-n", COMMITS, "--", "."])
        .env_clear()
        .envs([("GIT_CONFIG_NOSYSTEM", "1"), ("GIT_CONFIG_GLOBAL", "/dev/null")])
        .envs([("GIT_OPTIONAL_LOCKS", "0"), ("LANG", "C.UTF-8"), ("GIT_DIR", ".git")])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return Vec::new() };
    let mut text = Vec::new();
    if let Some(out) = child.stdout.take() {
        let _ = out.take(GIT_BYTES).read_to_end(&mut text);
    }
    let _ = child.kill();
    let _ = child.wait();
    String::from_utf8_lossy(&text).lines().filter_map(commit).collect()
}

fn commit(line: &str) -> Option<Commit> {
    let mut parts = line.splitn(3, '\t');
    let (id, date, subject) = (parts.next()?, parts.next()?, parts.next()?);
    let subject = subject.chars().take(120).collect();
    Some(Commit { id: id.into(), date: date.into(), subject })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_summary_counts_by_language_and_by_directory_and_fits_its_budget() {
        let mut count = Count::default();
        count.file("Cargo.toml", 1, 10);
        count.file("src/main.rs", 2, 100);
        count.file("src/a/b/deep.rs", 4, 50);
        let mut summary = count.into_summary(".".into(), Vec::new());
        let rust = Language { name: "Rust".into(), files: 2, bytes: 150 };
        assert_eq!(summary.languages[0], rust);
        let layout: Vec<_> =
            summary.layout.iter().map(|d| (d.path.as_str(), d.files, d.bytes)).collect();
        assert_eq!(layout, [("src", 2, 150), ("src/a", 1, 50)]);
        let points: Vec<_> = summary.entry_points.iter().map(|p| p.path.as_str()).collect();
        assert_eq!(points, ["Cargo.toml", "src/main.rs"]);
        for n in 0..500 {
            summary.layout.push(Directory { path: format!("dir{n}"), files: 1, bytes: 1 });
        }
        fit(&mut summary, 2048);
        assert!(serde_json::to_string(&summary).unwrap().len() <= 2048);
        assert_eq!(summary.incomplete.unwrap().reason, TOO_LONG);
    }
}
