//! The house's rules that no compiler holds: who may use whom, what a pure room may not touch, how
//! long things may grow, what a released migration is. Reads the source as text; runs none of it.
//!
//! Each rule is a function from sources to findings (`file:line: what`) and a test that holds the tree
//! to it; the rules that must read code also have a control that shows them catching something.

use std::{
    collections::BTreeSet,
    fs,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Every room, and the rooms it may use besides itself. A room is a folder or a file right under `src`.
const ROOMS: [(&str, &[&str]); 33] = [
    ("lib", &[]),
    ("domain", &[]),
    ("ports", &["domain"]),
    ("tools", &["domain"]),
    ("agents", &["domain"]),
    ("engine", &["agents", "domain", "fail_point", "ports", "tasks", "telemetry", "tools"]),
    ("backend", &["domain", "ports", "secrets", "telemetry"]),
    ("webhook", &["ports", "secrets", "telemetry"]),
    ("sandbox", &["domain", "ports", "tasks"]),
    ("sqlite", &["domain", "fail_point", "ports", "private_file", "signing", "telemetry"]),
    ("signing", &["domain", "private_file"]),
    ("policy_files", &["domain", "ports", "tasks", "yaml"]),
    ("tool_files", &["domain", "private_file", "yaml"]),
    ("callers", &["domain", "secrets"]),
    ("grpc", &["agents", "config", "domain", "engine", "jsonl", "ports", "proto"]),
    ("http", &["domain", "engine", "tasks"]),
    ("system", &["domain", "ports"]),
    (
        "config",
        &[
            "agents",
            "backend",
            "callers",
            "domain",
            "engine",
            "ports",
            "secrets",
            "telemetry",
            "webhook",
            "yaml",
        ],
    ),
    (
        "daemon",
        &[
            "domain",
            "ports",
            "tools",
            "engine",
            "backend",
            "sandbox",
            "signing",
            "sqlite",
            "mirror",
            "policy_files",
            "tool_files",
            "private_file",
            "secrets",
            "callers",
            "grpc",
            "http",
            "system",
            "config",
            "telemetry",
            "tasks",
            "webhook",
        ],
    ),
    ("check", &["callers", "config", "daemon", "domain", "ports", "sandbox", "telemetry", "tools"]),
    ("client", &["proto"]),
    (
        "ctl",
        &[
            "client",
            "config",
            "domain",
            "policy_files",
            "jsonl",
            // What `sqlite` gives when a journal is read without a daemon.
            "ports",
            "proto",
            "scripted",
            "signing",
            "sqlite",
            "system",
            "tasks",
            "telemetry",
            "tools",
            "yaml",
        ],
    ),
    ("scripted", &["tasks", "yaml"]),
    ("bin", &["check", "config", "ctl", "daemon", "sandbox", "tasks", "telemetry"]),
    ("private_file", &[]),
    ("secrets", &[]),
    ("proto", &[]),
    ("fail_point", &[]),
    ("jsonl", &["domain", "ports", "signing"]),
    ("mirror", &["domain", "fail_point", "jsonl", "ports", "tasks", "telemetry"]),
    ("tasks", &[]),
    ("telemetry", &[]),
    ("yaml", &[]),
];

const PURE_ROOMS: [&str; 3] = ["domain", "tools", "agents"];

/// Async runtimes, I/O, clocks, randomness and the environment.
const IMPURE: [&str; 19] = [
    "async",
    "await",
    "tokio",
    "reqwest",
    "rusqlite",
    "rustix",
    "libc",
    "ring",
    "rand",
    "Uuid::now_v7",
    "Timestamp::now",
    "std::env",
    "std::fs",
    "std::io",
    "std::net",
    "std::os",
    "std::process",
    "std::thread",
    "std::time",
];

/// What of the above is only a type or a number.
const PURE_AFTER_ALL: [&str; 1] = ["std::time::Duration"];

const SPAWNS: [&str; 7] = [
    "tokio::spawn",
    "task::spawn",
    "spawn_blocking",
    "spawn_local",
    "JoinSet",
    "thread::spawn",
    "thread::scope",
];

/// Who may have a thread of its own, and what it does.
const THREADS: [(&str, &str); 7] = [
    ("src/daemon.rs", "waits for signals"),
    ("src/daemon/upkeep.rs", "ends a process whose runtime may hang"),
    ("src/sandbox/egress/names.rs", "looks a name up, which nothing can call off"),
    ("src/sandbox/spawner.rs", "starts launchers, for as long as they live"),
    ("src/sqlite/mod.rs", "makes the key while the store is made"),
    ("src/sqlite/readers.rs", "reads, each with its connection"),
    ("src/sqlite/writer.rs", "the one that writes"),
];

const FILE_LINES_MOST: usize = 600;
const FILE_LINES_P90: usize = 350;
const FUNCTION_LINES_MOST: usize = 80;
const FUNCTION_LINES_P95: usize = 40;

/// Every migration in order, with the SHA-256 of its file.
const MIGRATIONS: [(&str, &str); 2] = [
    ("V1__journal.sql", "54ab771763bad6f7cc4ef3546d27204cdf19055a73263ea3d361ef5b3b978585"),
    (
        "V2__approvals_and_checkpoints.sql",
        "7003e0d9f1f33382bb7c9f7e8fd817a3c6f3421546a431f2b499abfd0394ad99",
    ),
];

#[test]
fn every_module_begins_with_a_header() {
    hold("begin the file with `//! what lives here, what never does`", headless(&sources()));
}

#[test]
fn tests_stand_last_in_their_file() {
    // All rules below stop reading at the first `#[cfg(test)]`: nothing may hide behind it.
    hold("put tests into one `#[cfg(test)] mod tests` at the end", hidden(&sources()));
}

#[test]
fn rooms_use_only_the_rooms_they_may() {
    hold(
        "turn the arrow round (a port, an argument), or move the code; a change of ROOMS wants an ADR",
        forbidden_rooms(&sources()),
    );
}

#[test]
fn no_room_may_use_what_it_does_not_use() {
    hold("take it out of the room's row in ROOMS", idle_permissions(&sources(), &ROOMS));
}

#[test]
fn pure_rooms_touch_nothing() {
    hold("let it come in as an argument or through a port", impure(&sources()));
}

#[test]
fn anyhow_stays_in_the_programs() {
    hold("make an error enum of the layer: see the style, Errors", untyped_errors(&sources()));
}

#[test]
fn tasks_and_threads_are_started_where_they_are_owned() {
    hold(
        "use `Tasks::spawn` or `tasks::blocking`; a new thread goes into THREADS",
        spawns(&sources()),
    );
}

#[test]
fn status_codes_are_chosen_in_one_place() {
    hold(
        "return the error as it is and give it a code in src/grpc/convert.rs",
        statuses(&sources()),
    );
}

#[test]
fn files_and_functions_keep_to_their_budgets() {
    hold("split it where it changes its subject", over_budget(&sources()));
}

#[test]
fn no_choice_is_a_boolean_parameter() {
    hold("make the choice an enum, as in `Overwrite::Refuse`", boolean_parameters(&sources()));
}

#[test]
fn nothing_is_left_unfinished() {
    let all = ["src", "tests", "benches"]
        .iter()
        .flat_map(|folder| rust_files(folder))
        .collect::<Vec<_>>();
    hold("finish it, or assert today's behaviour and open an issue", unfinished(&all));
}

#[test]
fn migrations_are_contiguous_and_never_change() {
    let found = names_in("migrations")
        .into_iter()
        .map(|name| {
            let hash =
                sha256(&fs::read(root().join("migrations").join(&name)).expect("a migration"));
            (name, hash)
        })
        .collect::<Vec<_>>();
    hold(
        "undo the change and write the next migration; pin a new one in MIGRATIONS. Only the one that \
         no release carries yet may be pinned anew",
        changed_migrations(&found, &MIGRATIONS),
    );
}

#[test]
fn the_changelog_has_room_for_what_comes() {
    let text = fs::read_to_string(root().join("CHANGELOG.md")).expect("CHANGELOG.md");
    assert!(
        text.lines().any(|line| line == "## [Unreleased]"),
        "CHANGELOG.md: add a `## [Unreleased]` heading and say there what users will notice"
    );
}

#[test]
fn decisions_are_numbered_without_gaps() {
    hold(
        "name it NNNN-what-was-decided.md, with the next number",
        misnumbered(&names_in("docs/adr")),
    );
}

// The rules.

fn headless(sources: &[Source]) -> Vec<String> {
    let without = sources.iter().filter(|source| !source.text.starts_with("//! "));
    without.map(|source| format!("{}:1: no module header", source.path)).collect()
}

fn hidden(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let blank = blank(&source.text);
        let lines = blank.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        let mut tests = lines.skip_while(|(_, line)| !is_test_gate(line));
        let Some((gate, _)) = tests.next() else { continue };
        let mut tests = tests.skip_while(|(_, line)| line.starts_with("#["));
        let declared = tests.next().map_or("", |(_, line)| line);
        let after = match (declared.starts_with("mod "), declared.ends_with('{')) {
            (true, true) => tests.skip_while(|(_, line)| *line != "}").nth(1),
            (true, false) => tests.next(),
            (false, _) => Some((gate, "")),
        };
        if let Some((line, _)) = after {
            found.push(format!(
                "{}:{}: stands after or outside `mod tests`",
                source.path,
                line + 1
            ));
        }
    }
    found
}

fn forbidden_rooms(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        let room = source.room();
        let Some((_, may)) = ROOMS.iter().find(|(name, _)| *name == room) else {
            found.push(format!("{}:1: {room} is not in ROOMS", source.path));
            continue;
        };
        for (line, used) in source.rooms_used() {
            if used != room && !may.contains(&used.as_str()) {
                found.push(format!("{}:{line}: {room} may not use {used}", source.path));
            }
        }
    }
    found
}

fn idle_permissions(sources: &[Source], rooms: &[(&str, &[&str])]) -> Vec<String> {
    let mut found = Vec::new();
    for (room, may) in rooms {
        let inside = sources.iter().filter(|source| source.room() == *room);
        let used =
            inside.flat_map(Source::rooms_used).map(|(_, used)| used).collect::<BTreeSet<_>>();
        let idle = may.iter().filter(|permitted| !used.contains(**permitted));
        found.extend(idle.map(|permitted| format!("src/{room}: does not use {permitted}")));
    }
    found
}

fn impure(sources: &[Source]) -> Vec<String> {
    let pure = sources.iter().filter(|source| PURE_ROOMS.contains(&source.room()));
    wherever(pure, |path| {
        !PURE_AFTER_ALL.iter().any(|fine| contains(path, fine))
            && IMPURE.iter().any(|impure| contains(path, impure))
    })
}

fn untyped_errors(sources: &[Source]) -> Vec<String> {
    let typed = sources.iter().filter(|source| !["bin", "ctl"].contains(&source.room()));
    wherever(typed, |path| contains(path, "anyhow"))
}

fn spawns(sources: &[Source]) -> Vec<String> {
    let elsewhere = sources.iter().filter(|source| source.path != "src/tasks.rs");
    let mut found = wherever(elsewhere, |path| SPAWNS.iter().any(|spawn| contains(path, spawn)));
    let others =
        sources.iter().filter(|source| THREADS.iter().all(|(owner, _)| source.path != *owner));
    found.extend(wherever(others, |path| contains(path, "thread::Builder")));
    found
}

fn statuses(sources: &[Source]) -> Vec<String> {
    let elsewhere = || sources.iter().filter(|source| source.path != "src/grpc/convert.rs");
    let is_function = |name: &str| name.starts_with(|first: char| first.is_lowercase());
    let mut found = wherever(elsewhere(), |path| after(path, "Status").is_some_and(is_function));
    // The client reads codes, to choose its own exit status.
    let daemon = elsewhere().filter(|source| source.room() != "ctl");
    found.extend(wherever(daemon, |path| after(path, "Code").is_some()));
    found
}

fn over_budget(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    let (mut files, mut all) = (Vec::new(), Vec::new());
    for source in sources.iter().filter(|source| !source.is_tests()) {
        let code = source.code();
        let lines = code.lines().count();
        files.push(lines);
        if lines > FILE_LINES_MOST {
            found.push(format!("{}:1: {lines} lines without its tests", source.path));
        }
        for function in functions(&code) {
            all.extend((function.lines > 0).then_some(function.lines));
            if function.lines > FUNCTION_LINES_MOST {
                let Function { line, name, lines, .. } = function;
                found.push(format!("{}:{line}: {name} has {lines} lines", source.path));
            }
        }
    }
    let mut percentile = |what: &str, lengths: &mut [usize], percent: usize, most: usize| {
        let length = nearest_rank(lengths, percent);
        if length > most {
            found
                .push(format!("src: {percent} % of {what} want {length} lines, {most} are agreed"));
        }
    };
    percentile("files", &mut files, 90, FILE_LINES_P90);
    percentile("functions", &mut all, 95, FUNCTION_LINES_P95);
    found
}

fn boolean_parameters(sources: &[Source]) -> Vec<String> {
    let mut found = Vec::new();
    for source in
        sources.iter().filter(|source| ["domain", "ports", "engine"].contains(&source.room()))
    {
        for function in functions(&source.code()) {
            if function.takes_bool {
                found.push(format!(
                    "{}:{}: {} takes a bool",
                    source.path, function.line, function.name
                ));
            }
        }
    }
    found
}

fn unfinished(sources: &[Source]) -> Vec<String> {
    // In two pieces each, or this file would find itself.
    let needles =
        [("to", "do!"), ("unimple", "mented!"), ("#[ig", "nore"), ("FIX", "ME"), ("XX", "X")]
            .map(|(begin, end)| format!("{begin}{end}"));
    let mut found = Vec::new();
    for source in sources {
        for (number, line) in source.text.lines().enumerate() {
            let hits = needles.iter().filter(|needle| line.contains(needle.as_str()));
            found.extend(hits.map(|needle| format!("{}:{}: {needle}", source.path, number + 1)));
        }
    }
    found
}

fn changed_migrations(found: &[(String, String)], pinned: &[(&str, &str)]) -> Vec<String> {
    let mut wrong = Vec::new();
    for (at, (name, _)) in pinned.iter().enumerate() {
        if !name.starts_with(&format!("V{}__", at + 1)) {
            wrong.push(format!("migrations/{name}:1: not number {} by its name", at + 1));
        }
        if !found.iter().any(|(file, _)| file == name) {
            wrong.push(format!("migrations/{name}:1: pinned, but gone"));
        }
    }
    for (name, hash) in found {
        match pinned.iter().find(|(pinned, _)| pinned == name) {
            Some((_, pin)) if pin == hash => {}
            Some(_) => {
                wrong.push(format!("migrations/{name}:1: changed; its SHA-256 is now {hash}"))
            }
            None => wrong.push(format!("migrations/{name}:1: not pinned; its SHA-256 is {hash}")),
        }
    }
    wrong
}

fn misnumbered(names: &[String]) -> Vec<String> {
    let named = names.iter().enumerate().filter(|(at, name)| {
        let slug =
            name.strip_prefix(&format!("{:04}-", at + 1)).and_then(|rest| rest.strip_suffix(".md"));
        slug.is_none_or(str::is_empty)
    });
    named.map(|(at, name)| format!("docs/adr/{name}:1: number {:04} is due here", at + 1)).collect()
}

// How the rules read source.

/// One Rust file.
struct Source {
    /// From the top of the tree, with `/`.
    path: String,
    text: String,
}

impl Source {
    /// First folder or file under `src`.
    fn room(&self) -> &str {
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let first = inside.split('/').next().unwrap_or(inside);
        first.strip_suffix(".rs").unwrap_or(first)
    }

    /// Whether the whole file is `#[cfg(test)]`, by a `mod` elsewhere.
    fn is_tests(&self) -> bool {
        self.path.ends_with("/tests.rs")
            || self.path.ends_with("_tests.rs")
            || self.path.contains("_tests/")
    }

    /// The text up to its tests, with comments and the insides of literals blanked. Lines keep their
    /// numbers.
    fn code(&self) -> String {
        if self.is_tests() {
            return String::new();
        }
        blank(&self.text)
            .lines()
            .take_while(|line| !is_test_gate(line))
            .flat_map(|line| [line, "\n"])
            .collect()
    }

    /// Lines, and the room that a path in them leads to.
    fn rooms_used(&self) -> Vec<(usize, String)> {
        let mentions = mentions(&self.code()).into_iter();
        mentions
            .filter_map(|Mention { line, path }| {
                Some((line, self.room_named_by(&path)?.to_owned()))
            })
            .collect()
    }

    /// The room that a path leads to from here, where it leads to one.
    fn room_named_by<'a>(&self, path: &'a str) -> Option<&'a str> {
        let supers = path.split("::").take_while(|segment| *segment == "super").count();
        let inside = self.path.strip_prefix("src/").unwrap_or(&self.path);
        let depth = inside.split('/').count() - usize::from(inside.ends_with("/mod.rs"));
        let mut segments = path.split("::");
        match segments.next()? {
            "crate" | "agentd" => segments.next(),
            // So many lead to the root; in an inline module one less, which no room's name follows.
            "super" if supers == depth => {
                segments.nth(supers - 1).filter(|name| ROOMS.iter().any(|(room, _)| room == name))
            }
            _ => None,
        }
    }
}

/// One path as code names it, the groups of a `use` multiplied out: `a::{b, c}` is `a::b` and `a::c`.
#[derive(Debug, PartialEq, Eq)]
struct Mention {
    /// From 1.
    line: usize,
    path: String,
}

/// One function with a body, or one declared without (then 0 `lines`).
struct Function<'a> {
    /// From 1.
    line: usize,
    name: &'a str,
    lines: usize,
    takes_bool: bool,
}

fn is_test_gate(line: &str) -> bool {
    line.trim_start().starts_with("#[cfg(test)]")
}

/// `text` with spaces for comments and literals.
fn blank(text: &str) -> String {
    let mut blanked = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let in_word = blanked.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let dead = comment(rest).or_else(|| literal(rest, in_word)).unwrap_or(0);
        if dead == 0 {
            blanked.push(first);
            rest = &rest[first.len_utf8()..];
        } else {
            blanked.extend(rest[..dead].chars().map(|c| if c == '\n' { '\n' } else { ' ' }));
            rest = &rest[dead..];
        }
    }
    blanked
}

/// Bytes of the comment that `rest` begins with.
fn comment(rest: &str) -> Option<usize> {
    if rest.starts_with("//") {
        return Some(rest.find('\n').unwrap_or(rest.len()));
    }
    if !rest.starts_with("/*") {
        return None;
    }
    let mut depth = 0;
    for (at, pair) in rest.as_bytes().windows(2).enumerate() {
        match pair {
            b"/*" => depth += 1,
            b"*/" if depth == 1 => return Some(at + 2),
            b"*/" => depth -= 1,
            _ => {}
        }
    }
    Some(rest.len())
}

/// Bytes of the string or character that `rest` begins with. A lifetime is neither.
fn literal(rest: &str, in_word: bool) -> Option<usize> {
    if let Some(tail) = ["br", "cr", "r"].iter().find_map(|prefix| rest.strip_prefix(prefix))
        && !in_word
    {
        let hashes = tail.len() - tail.trim_start_matches('#').len();
        let open = rest.len() - tail.len() + hashes + 1;
        let close = format!("\"{}", "#".repeat(hashes));
        return tail[hashes..]
            .starts_with('"')
            .then(|| rest[open..].find(&close).map_or(rest.len(), |at| open + at + close.len()));
    }
    let mut chars = rest.char_indices().skip(1);
    match rest.as_bytes().first()? {
        b'"' => {
            while let Some((at, c)) = chars.next() {
                match c {
                    '\\' => drop(chars.next()),
                    '"' => return Some(at + 1),
                    _ => {}
                }
            }
            Some(rest.len())
        }
        b'\'' => match (chars.next()?.1, chars.next()?) {
            ('\\', _) => chars.find(|(_, c)| *c == '\'').map(|(at, _)| at + 1),
            (_, (at, '\'')) => Some(at + 1),
            _ => None,
        },
        _ => None,
    }
}

/// Words, `::` and single signs, each with its line.
fn tokens(code: &str) -> Vec<(usize, &str)> {
    let mut found = Vec::new();
    for (number, mut rest) in code.lines().enumerate() {
        while let Some(first) = rest.chars().next() {
            let word = rest.find(|c: char| !is_word_sign(c)).unwrap_or(rest.len());
            let length = match word {
                0 if rest.starts_with("::") || rest.starts_with("->") => 2,
                0 => first.len_utf8(),
                _ => word,
            };
            let (token, after) = rest.split_at(length);
            if !token.trim().is_empty() {
                found.push((number + 1, token));
            }
            rest = after;
        }
    }
    found
}

fn is_word_sign(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

fn is_word(token: &str) -> bool {
    token.starts_with(is_word_sign)
}

/// Every path in `code`, in order. A lone word, even a keyword, is a path of one.
fn mentions(code: &str) -> Vec<Mention> {
    let tokens = tokens(code);
    let mut found = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        at = if is_word(tokens[at].1) { tree(&tokens, at, "", &mut found) } else { at + 1 };
    }
    found
}

/// Reads the path or use-tree at `at`, which continues `prefix`; gives where it ends.
fn tree(tokens: &[(usize, &str)], mut at: usize, prefix: &str, found: &mut Vec<Mention>) -> usize {
    let token = |at: usize| tokens.get(at).map_or("", |(_, token)| token);
    let line = tokens[at].0;
    let mut path = prefix.to_owned();
    loop {
        path.push_str(token(at));
        at += 1;
        if token(at) != "::" {
            break;
        }
        match token(at + 1) {
            "{" => {
                path.push_str("::");
                return group(tokens, at + 2, &path, found);
            }
            next if is_word(next) || next == "*" => {
                path.push_str("::");
                at += 1;
            }
            _ => break,
        }
    }
    found.push(Mention { line, path });
    at
}

/// Reads what stands between braces up to the closing one; gives where it ends.
fn group(tokens: &[(usize, &str)], mut at: usize, prefix: &str, found: &mut Vec<Mention>) -> usize {
    while let Some((_, token)) = tokens.get(at) {
        match *token {
            "}" => return at + 1,
            // The new name of `old as new` is no path.
            "as" => at += 2,
            first if is_word(first) || first == "*" => at = tree(tokens, at, prefix, found),
            _ => at += 1,
        }
    }
    at
}

fn functions(code: &str) -> Vec<Function<'_>> {
    let tokens = tokens(code);
    let starts =
        tokens.windows(2).enumerate().filter(|(_, pair)| pair[0].1 == "fn" && is_word(pair[1].1));
    starts.map(|(at, pair)| function(pair[0].0, pair[1].1, &tokens[at + 2..])).collect()
}

/// The function whose name stands before `rest`.
fn function<'a>(line: usize, name: &'a str, rest: &[(usize, &str)]) -> Function<'a> {
    let mut takes_bool = false;
    let (mut generics, mut brackets, mut braces) = (0, 0, 0);
    let mut parameters = true;
    for (at, (last, token)) in rest.iter().enumerate() {
        match *token {
            "<" if brackets == 0 && braces == 0 => generics += 1,
            ">" if brackets == 0 && braces == 0 => generics -= 1,
            "(" | "[" => brackets += 1,
            ")" | "]" => {
                brackets -= 1;
                // The list of parameters is the first that stands outside of `<…>`.
                parameters &= brackets > 0 || generics > 0;
            }
            "bool" if parameters && generics == 0 && at > 0 && rest[at - 1].1 == ":" => {
                takes_bool = true
            }
            ";" if brackets == 0 && braces == 0 => {
                return Function { line, name, lines: 0, takes_bool };
            }
            "{" => braces += 1,
            "}" => {
                braces -= 1;
                if braces == 0 {
                    return Function { line, name, lines: last - line + 1, takes_bool };
                }
            }
            _ => {}
        }
    }
    Function { line, name, lines: 0, takes_bool }
}

/// What follows the segment `name` in `path`.
fn after<'a>(path: &'a str, name: &str) -> Option<&'a str> {
    let mut segments = path.split("::").skip_while(|segment| *segment != name);
    segments.nth(1)
}

/// Whether the segments of `needle` stand in `path` one after the other.
fn contains(path: &str, needle: &str) -> bool {
    format!("::{path}::").contains(&format!("::{needle}::"))
}

fn wherever<'a>(
    sources: impl Iterator<Item = &'a Source>,
    is_wrong: impl Fn(&str) -> bool,
) -> Vec<String> {
    let mut found = Vec::new();
    for source in sources {
        for Mention { line, path } in mentions(&source.code()) {
            if is_wrong(&path) {
                found.push(format!("{}:{line}: {path}", source.path));
            }
        }
    }
    found
}

/// The least of `lengths` that `percent` of them do not exceed; 0 of none.
fn nearest_rank(lengths: &mut [usize], percent: usize) -> usize {
    lengths.sort_unstable();
    let rank = (lengths.len() * percent).div_ceil(100);
    rank.checked_sub(1).map_or(0, |at| lengths[at])
}

fn sha256(bytes: &[u8]) -> String {
    Sha256::digest(bytes).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[track_caller]
fn hold(advice: &str, found: Vec<String>) {
    assert!(found.is_empty(), "to do: {advice}\n  {}", found.join("\n  "));
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn sources() -> Vec<Source> {
    rust_files("src")
}

/// Every `.rs` file below a folder, by name.
fn rust_files(folder: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut folders = vec![root().join(folder)];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).expect("a folder of the tree") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                found.push(read(path));
            }
        }
    }
    assert!(!found.is_empty(), "no source in {folder}: the rules would hold of nothing");
    found.sort_by(|a, b| a.path.cmp(&b.path));
    found
}

fn read(path: PathBuf) -> Source {
    let text = fs::read_to_string(&path).expect("source is UTF-8");
    let inside = path.strip_prefix(root()).expect("a file of the tree");
    Source { path: inside.to_str().expect("a plain name").to_owned(), text }
}

/// Names in a folder, sorted; none if there is no such folder: git keeps no empty ones.
fn names_in(folder: &str) -> Vec<String> {
    let Ok(entries) = fs::read_dir(root().join(folder)) else { return Vec::new() };
    let mut names = entries
        .map(|entry| entry.expect("an entry").file_name().into_string().expect("a plain name"))
        .collect::<Vec<_>>();
    names.sort();
    names
}

/// Shows that the rules catch what they are for.
mod controls {
    use super::*;

    fn at(path: &str, text: &str) -> Source {
        Source { path: path.into(), text: text.into() }
    }

    #[track_caller]
    fn check(rule: fn(&[Source]) -> Vec<String>, path: &str, text: &str, expected: &[&str]) {
        assert_eq!(rule(&[at(path, text)]), expected);
    }

    #[test]
    fn a_forbidden_room_is_found_alone_in_a_group_and_in_code() {
        let text = "//! Header.\n\
            use crate::sqlite::Store;\n\
            use crate::{\n    domain::{ids::RunId, run},\n    grpc::{self, convert as grpc_convert},\n};\n\
            fn f() { crate::daemon::run() }\n\
            fn g() { super::super::backend::wire() }\n";
        check(
            forbidden_rooms,
            "src/engine/driver.rs",
            text,
            &[
                "src/engine/driver.rs:2: engine may not use sqlite",
                "src/engine/driver.rs:5: engine may not use grpc",
                "src/engine/driver.rs:5: engine may not use grpc",
                "src/engine/driver.rs:7: engine may not use daemon",
                "src/engine/driver.rs:8: engine may not use backend",
            ],
        );
    }

    #[test]
    fn programs_name_rooms_by_the_name_of_the_crate() {
        let expected = ["src/bin/agentd.rs:1: bin may not use engine"];
        check(
            forbidden_rooms,
            "src/bin/agentd.rs",
            "use agentd::{config::Config, engine};",
            &expected,
        );
    }

    #[test]
    fn a_room_that_nobody_planned_is_found() {
        check(forbidden_rooms, "src/misc.rs", "", &["src/misc.rs:1: misc is not in ROOMS"]);
    }

    #[test]
    fn a_permission_that_nobody_needs_is_found() {
        let sources = [at("src/a.rs", "use crate::b;"), at("src/b.rs", "")];
        let rooms: [(&str, &[&str]); 2] = [("a", &["b", "c"]), ("b", &["a"])];
        let expected = ["src/a: does not use c", "src/b: does not use a"];
        assert_eq!(idle_permissions(&sources, &rooms), expected);
    }

    #[test]
    fn comments_literals_and_tests_name_nothing() {
        let text = "// crate::grpc\n/* a /* b */ crate::grpc */\n\
            const A: &str = \"\\\" crate::grpc\"; const B: &str = r#\"\" crate::grpc\"#;\n\
            const C: [char; 3] = ['\"', '\\'', 'x']; fn f<'a>(a: &'a str) {} // crate::grpc\n\
            #[cfg(test)]\nmod tests { use crate::grpc; }\n";
        check(forbidden_rooms, "src/domain/run.rs", text, &[]);
        check(forbidden_rooms, "src/domain/run_tests/mod.rs", "use crate::grpc;", &[]);
    }

    #[test]
    fn what_follows_a_literal_is_read_again() {
        let text = "const A: (char, &str) = ('\"', r\"\\\"); use crate::grpc;";
        check(
            forbidden_rooms,
            "src/domain/run.rs",
            text,
            &["src/domain/run.rs:1: domain may not use grpc"],
        );
    }

    #[test]
    fn clocks_files_and_tasks_are_found_in_pure_rooms() {
        let text = "use std::{collections::BTreeMap, time::{Duration, Instant}};\n\
            use std::time::Duration;\nasync fn f() { std::fs::read(\"x\") }\n";
        let expected = [
            "src/tools/x.rs:1: std::time::Instant",
            "src/tools/x.rs:3: async",
            "src/tools/x.rs:3: std::fs::read",
        ];
        check(impure, "src/tools/x.rs", text, &expected);
        check(impure, "src/sandbox/x.rs", text, &[]);
    }

    #[test]
    fn tasks_threads_statuses_and_untyped_errors_are_found_outside_their_places() {
        let text = "fn f() -> anyhow::Result<()> { task::spawn_blocking(g); thread::Builder::new(); }\n\
            fn g() -> Status { if status.code() == Code::Ok { tonic::Status::not_found(\"\") } }\n\
            fn h(status: &v1::RunStatus) { RunStatus::new(StatusCode::OK) }\n";
        check(untyped_errors, "src/engine/x.rs", text, &["src/engine/x.rs:1: anyhow::Result"]);
        let spawned =
            ["src/engine/x.rs:1: task::spawn_blocking", "src/engine/x.rs:1: thread::Builder::new"];
        check(spawns, "src/engine/x.rs", text, &spawned);
        let coded = ["src/engine/x.rs:2: tonic::Status::not_found", "src/engine/x.rs:2: Code::Ok"];
        check(statuses, "src/engine/x.rs", text, &coded);
    }

    #[test]
    fn code_behind_the_tests_is_found() {
        let expected = ["src/x.rs:5: stands after or outside `mod tests`"];
        check(
            hidden,
            "src/x.rs",
            "#[cfg(test)]\nmod tests {\n    use x;\n}\nfn late() {}\n",
            &expected,
        );
        let expected = ["src/x.rs:1: stands after or outside `mod tests`"];
        check(hidden, "src/x.rs", "#[cfg(test)]\nfn helper() {}\n", &expected);
        check(hidden, "src/x.rs", "#[cfg(test)]\n#[path = \"x_tests.rs\"]\nmod tests;\n", &[]);
    }

    #[test]
    fn a_long_function_is_found_with_its_line() {
        let text = format!("struct A;\n\nfn long(a: [u8; 2]) {{\n{}}}\n", "    a();\n".repeat(79));
        let expected = [
            "src/x.rs:3: long has 81 lines",
            "src: 95 % of functions want 81 lines, 40 are agreed",
        ];
        check(over_budget, "src/x.rs", &text, &expected);
    }

    #[test]
    fn a_long_file_is_found_and_its_tests_do_not_count() {
        let fits = "// line\n".repeat(350);
        check(
            over_budget,
            "src/x.rs",
            &format!("{fits}#[cfg(test)]\nmod tests {{\n{fits}{fits}}}\n"),
            &[],
        );
        let expected = [
            "src/x.rs:1: 700 lines without its tests",
            "src: 90 % of files want 700 lines, 350 are agreed",
        ];
        check(over_budget, "src/x.rs", &format!("{fits}{fits}"), &expected);
    }

    #[test]
    fn a_boolean_parameter_is_found_behind_generics_and_in_traits() {
        let text = "pub fn f<F: Fn(u8) -> bool>(\n    a: F,\n    force: bool,\n) {}\n\
            pub trait T {\n    fn g(&self, now: bool);\n    fn h(&self) -> bool;\n}\n\
            fn i(a: u8) { let b: bool = a > 1; }\n";
        let expected = ["src/ports.rs:1: f takes a bool", "src/ports.rs:6: g takes a bool"];
        check(boolean_parameters, "src/ports.rs", text, &expected);
    }

    #[test]
    fn notes_to_self_and_missing_headers_are_found() {
        let text = format!("fn f() {{}}\n// {}{}\n", "FIX", "ME: later");
        check(headless, "src/x.rs", &text, &["src/x.rs:1: no module header"]);
        assert_eq!(
            unfinished(&[at("src/x.rs", &text)]),
            [format!("src/x.rs:2: {}{}", "FIX", "ME")]
        );
    }

    #[test]
    fn a_changed_missing_or_new_migration_is_found() {
        let found =
            [("V1__a.sql", "11"), ("V3__c.sql", "33")].map(|(n, h)| (n.to_owned(), h.to_owned()));
        assert_eq!(changed_migrations(&found[..1], &[("V1__a.sql", "11")]), Vec::<String>::new());
        assert_eq!(
            changed_migrations(&found, &[("V1__a.sql", "00"), ("V4__b.sql", "22")]),
            [
                "migrations/V4__b.sql:1: not number 2 by its name",
                "migrations/V4__b.sql:1: pinned, but gone",
                "migrations/V1__a.sql:1: changed; its SHA-256 is now 11",
                "migrations/V3__c.sql:1: not pinned; its SHA-256 is 33",
            ]
        );
    }

    #[test]
    fn a_gap_between_decisions_is_found() {
        let names = ["0001-journal.md", "0003-yaml.md", "notes.md"].map(str::to_owned);
        assert_eq!(
            misnumbered(&names),
            [
                "docs/adr/0003-yaml.md:1: number 0002 is due here",
                "docs/adr/notes.md:1: number 0003 is due here",
            ]
        );
    }
}
