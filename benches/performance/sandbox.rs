//! What a confined program costs beside a plain one, and a decision: in this process, with the real launcher.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use agentd::{
    domain::{
        effect::{Effect, EffectResult, Exit, Facts},
        ids::{RoleName, RuleId, ToolName},
        policy::{CommandRule, Decision, Policy, Role},
    },
    policy_files::{Sources, compile},
    ports::{Attempt, Company, Sandbox as _, Scene},
    sandbox::{LocalSandbox, Places, Walls},
};
use tokio_util::sync::CancellationToken;

use crate::figures::{median, quantile};

const TIMES: usize = 300;
const PROGRAM: &str = "/bin/true";

/// A sandbox on a scratch directory, and a policy that lets `true` run.
pub(crate) struct Stage {
    pub(crate) sandbox: LocalSandbox,
    pub(crate) policy: Policy,
    pub(crate) scene: Scene,
    _scratch: tempfile::TempDir,
}

pub(crate) fn role() -> RoleName {
    RoleName::new("bench")
}

pub(crate) fn tool() -> ToolName {
    ToolName::new("shell_exec")
}

/// The policy of these files, with rules that let exactly these commands run and reach what these rules name.
pub(crate) fn policy(
    sources: &Sources,
    commands: Vec<Vec<String>>,
    network: Vec<RuleId>,
) -> Policy {
    let tools = ["read_file", "write_file", "edit_file", "list_dir", "search_files", "shell_exec"];
    let tools: Vec<ToolName> =
        tools.into_iter().chain(["repo_summarize"]).map(ToolName::new).collect();
    let policy = compile(sources, &tools).unwrap();
    let like = policy.commands.iter().find(|rule| rule.id == RuleId::new("git.status")).unwrap();
    let rule = |(n, argv): (usize, Vec<String>)| CommandRule {
        id: RuleId::new(format!("rule.{n}")),
        argv,
        inject: Vec::new(),
        inject_after: Vec::new(),
        network: network.clone(),
        ..like.clone()
    };
    Policy {
        roles: [(role(), Role { tools: [tool()].into() })].into(),
        commands: commands.into_iter().enumerate().map(rule).collect::<Vec<_>>().into(),
        ..policy
    }
}

impl Stage {
    /// With so many launchers that wait.
    pub(crate) fn open(ready: u8, policy: Policy) -> Self {
        let scratch = tempfile::tempdir().unwrap();
        let (state, workspace) = (scratch.path().join("state"), scratch.path().join("workspace"));
        fs::create_dir(&state).unwrap();
        // As in a repository: there is something to protect, and nothing stands in for it.
        fs::create_dir_all(workspace.join(".git")).unwrap();
        let launcher = PathBuf::from(env!("CARGO_BIN_EXE_agentd-sandbox"));
        let walls = Walls::probe(launcher, &workspace).unwrap();
        let places = Places { workspace_root: scratch.path().to_owned(), off_limits: Vec::new() };
        let sandbox = LocalSandbox::open(walls, &state, places, ready).unwrap();
        let scene = Scene {
            workspace,
            program_directories: policy.program_directories.clone(),
            label: "bench".into(),
            earlier: None,
        };
        Self { sandbox, policy, scene, _scratch: scratch }
    }

    pub(crate) fn workspace(&self) -> &Path {
        &self.scene.workspace
    }

    /// From the decision to the outcome.
    async fn confined(&self) -> Duration {
        let effect = Effect::Spawn { argv: vec!["true".into()] };
        let resolved = self.sandbox.resolve(&self.scene, effect).await.unwrap();
        let started = Instant::now();
        let Decision::Allow(permit) = self.policy.decide(&role(), &tool(), resolved) else {
            panic!("the rule allows it");
        };
        let stop = CancellationToken::new();
        let company = Company { stop: &stop, heard: &|_, _| {}, door: None };
        let result = self.sandbox.run(permit, Attempt::First, company).await.unwrap();
        let took = started.elapsed();
        let EffectResult::Ran(ran) = result else { panic!("{result:?}") };
        assert_eq!(ran.exit, Exit::Code(0), "{ran:?}");
        took
    }
}

fn only_true() -> Policy {
    policy(&Sources::built_in(), vec![vec!["true".into()]], Vec::new())
}

/// The same program by posix_spawn, with the same pipes.
fn plain() -> Duration {
    let started = Instant::now();
    let output = Command::new(PROGRAM).env_clear().stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success());
    started.elapsed()
}

/// Both in turns: medians, and the 90th percentile of what is confined, in milliseconds.
async fn both(ready: u8, pause: Duration) -> (f64, f64, f64) {
    let (mut plain_ms, mut confined_ms) = (Vec::new(), Vec::new());
    let stage = Stage::open(ready, only_true());
    for n in 0..TIMES + 10 {
        let pair = (plain(), stage.confined().await);
        // The first ones warm everything up.
        if n >= 10 {
            plain_ms.push(pair.0.as_secs_f64() * 1000.0);
            confined_ms.push(pair.1.as_secs_f64() * 1000.0);
        }
        tokio::time::sleep(pause).await;
    }
    (median(&mut plain_ms), median(&mut confined_ms), quantile(&mut confined_ms, 0.9))
}

pub(crate) async fn spawn() {
    println!("## A confined program\n");
    println!(
        "`{PROGRAM}` from decision to outcome, cgroups included, {TIMES} times each in turns.\n"
    );
    println!(
        "| daemon holds | launcher | calls | posix_spawn ms | confined ms | p90 ms | times as long |"
    );
    println!("|---|---|---|---|---|---|---|");
    let mut ballast: Vec<u8> = Vec::new();
    for mib in [10, 1024] {
        ballast.resize(mib << 20, 1);
        for (ready, launcher) in [(2, "ready"), (0, "new")] {
            for (calls, pause) in [("20 ms apart", 20), ("at once, one after the other", 0)] {
                let pause = Duration::from_millis(pause);
                let (plain, confined, tail) = both(ready, pause).await;
                println!(
                    "| {mib} MiB | {launcher} | {calls} | {plain:.2} | {confined:.2} | {tail:.2} | {:.1} |",
                    confined / plain
                );
            }
        }
    }
    std::hint::black_box(&ballast);
    println!("\n{}\n", memory_of_those_that_wait().await);
}

/// What the launchers that wait have of memory, with their share of what they share.
async fn memory_of_those_that_wait() -> String {
    let stage = Stage::open(2, only_true());
    stage.confined().await;
    let mut processes = Vec::new();
    for _ in 0..100 {
        processes = below(std::process::id());
        if processes.len() == 7 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let kib = processes.iter().filter_map(|process| {
        let rollup = fs::read_to_string(format!("/proc/{process}/smaps_rollup")).ok()?;
        let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"))?;
        pss.trim().trim_end_matches(" kB").parse::<u64>().ok()
    });
    format!(
        "{} processes wait, the fork server among them, with {} KiB in all.",
        processes.len(),
        kib.sum::<u64>()
    )
}

fn below(process: u32) -> Vec<u32> {
    let threads = fs::read_dir(format!("/proc/{process}/task")).into_iter().flatten().flatten();
    let lists = threads.flat_map(|thread| fs::read_to_string(thread.path().join("children")));
    let children = lists.flat_map(|list| {
        list.split_whitespace().filter_map(|pid| pid.parse().ok()).collect::<Vec<u32>>()
    });
    children.flat_map(|child| [vec![child], below(child)].concat()).collect()
}

pub(crate) fn decision() {
    println!("## A decision\n");
    println!("| rules | microseconds |");
    println!("|---|---|");
    for count in [50, 500, 5000] {
        let commands = (0..count).map(|n| vec![format!("program{n}")]).collect();
        let policy = policy(&Sources::built_in(), commands, Vec::new());
        let facts = || Facts::Spawn {
            argv: vec![format!("program{}", count - 1), "-s".into(), "src".into()],
            executable: String::new(),
            sha256: String::new(),
        };
        let mut each: Vec<f64> = Vec::new();
        for _ in 0..2000 {
            let facts = facts();
            let started = Instant::now();
            let decision = std::hint::black_box(policy.decide(&role(), &tool(), facts));
            each.push(started.elapsed().as_secs_f64() * 1e6);
            assert!(matches!(decision, Decision::Allow(_)));
        }
        println!("| {count} | {:.1} |", median(&mut each));
    }
    println!();
}
