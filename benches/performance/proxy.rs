//! What the way out of a sandbox costs beside none: one `curl`, plain and confined, with an internet of two network
//! namespaces of the benchmark's own. Takes root, `ip` and `curl`; without them it says so.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Write as _},
    net::{TcpListener, TcpStream},
    path::Path,
    process::Command,
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use agentd::{
    domain::{
        effect::{Effect, EffectResult, Exit},
        ids::RuleId,
        policy::{Decision, Gate, Grant, Policy},
    },
    policy_files::{Source, Sources},
    ports::{Answered, Attempt, Company, Door, NotNoted, Reached, Sandbox as _},
};
use async_trait::async_trait;
use rustix::thread::UnshareFlags;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::{
    figures::median,
    sandbox::{Stage, policy, role, tool},
};

/// An address of the public internet, as far as the proxy can know.
const ADDRESS: &str = "93.184.215.14";
const MIB: usize = 512;
const TIMES: usize = 7;

const NETWORK: &str = "\
schema: agentd/network/v1
rules:
  - {id: web, hosts: [93.184.215.14], ports: [80], tunnels: anything, decision: allow, why: to be measured}
";

/// Lets through what the policy allows; writes nothing down.
struct Opened {
    policy: Policy,
    changes: watch::Sender<u64>,
}

#[async_trait]
impl Door for Opened {
    fn ask(&self, grant: &Grant, wanted: agentd::domain::policy::Destination) -> Answered {
        let (ruling, revision) = (self.policy.admit(grant, wanted), self.policy.revision.clone());
        Answered { ruling, revision }
    }

    async fn note(&self, _: Reached<'_>) -> Result<(), NotNoted> {
        Ok(())
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

pub(crate) fn proxy() {
    println!("## The way out of a sandbox\n");
    match thread::spawn(in_an_internet).join().unwrap() {
        Ok(()) => println!(),
        Err(error) => println!("NOT MEASURED: {error}; it takes root, ip and curl\n"),
    }
}

/// What this thread starts, threads and processes, is in its namespace.
fn in_an_internet() -> io::Result<()> {
    let outside = outside()?;
    apart()?;
    sh(&format!(
        "ip link set lo up; ip link add out type veth peer name in netns {outside}
         ip addr add 10.99.0.1/24 dev out; ip link set out up
         nsenter -t {outside} -n sh -ec 'ip addr add 93.184.215.14/32 dev lo; ip link set lo up
             ip addr add 10.99.0.2/24 dev in; ip link set in up'
         ip route add default via 10.99.0.2"
    ))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(measure());
    Ok(())
}

/// Serves so many bytes to whoever connects, in a namespace of its own. Gives the thread that is in it.
fn outside() -> io::Result<i32> {
    let (said, heard) = mpsc::channel();
    thread::spawn(move || {
        let made = apart().and_then(|()| TcpListener::bind(("0.0.0.0", 80)));
        let thread = rustix::thread::gettid().as_raw_nonzero().get();
        let listener = match made {
            Ok(listener) => said.send(Ok(thread)).map(|()| listener).ok(),
            Err(error) => said.send(Err(error)).map(|()| None).ok().flatten(),
        };
        for client in listener.iter().flat_map(TcpListener::incoming).flatten() {
            thread::spawn(move || drop(serve(client)));
        }
    });
    heard.recv().map_err(io::Error::other)?
}

fn serve(mut client: TcpStream) -> io::Result<()> {
    let mut reader = BufReader::new(client.try_clone()?);
    let mut line = String::new();
    while reader.read_line(&mut line)? > 0 && !line.trim().is_empty() {
        line.clear();
    }
    write!(client, "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", MIB << 20)?;
    let block = vec![7; 1 << 20];
    (0..MIB).try_for_each(|_| client.write_all(&block))
}

fn apart() -> io::Result<()> {
    #[expect(unsafe_code, reason = "unshare may take away what other code relies on")]
    // SAFETY: this thread has no socket yet, and shares nothing but memory with the others from here on.
    Ok(unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?)
}

fn sh(script: &str) -> io::Result<()> {
    let done = Command::new("sh").args(["-ec", script]).output()?;
    match done.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

async fn measure() {
    println!("{MIB} MiB by `curl`, {TIMES} times each in turns; medians.\n");
    println!("| | direct MiB/s | by the proxy MiB/s | of direct |");
    println!("|---|---|---|---|");
    let sources = Sources {
        network: Some(Source { name: "network.yaml".into(), text: NETWORK.into() }),
        allow_net: Gate::Open,
        ..Sources::built_in()
    };
    let command = ["sh", "get.sh"].map(str::to_owned).to_vec();
    let policy = policy(&sources, vec![command.clone()], vec![RuleId::new("web")]);
    let stage = Stage::open(2, policy.clone());
    let door = Opened { policy, changes: watch::Sender::new(0) };
    for (what, option) in [("plain requests", ""), ("tunnels", "-p")] {
        let script = format!("exec curl -sSf {option} -o /dev/null http://{ADDRESS}/");
        fs::write(stage.workspace().join("get.sh"), script).unwrap();
        let (mut direct, mut proxied) = (Vec::new(), Vec::new());
        for _ in 0..TIMES {
            direct.push(rate(plain(stage.workspace())));
            proxied.push(rate(confined(&stage, &door, &command).await));
        }
        let (direct, proxied) = (median(&mut direct), median(&mut proxied));
        println!("| {what} | {direct:.0} | {proxied:.0} | {:.2} |", proxied / direct);
    }
}

fn rate(took: Duration) -> f64 {
    MIB as f64 / took.as_secs_f64()
}

/// Without a proxy `-p` means nothing.
fn plain(place: &Path) -> Duration {
    let started = Instant::now();
    let done = Command::new("sh").arg("get.sh").current_dir(place).output().unwrap();
    assert!(done.status.success(), "{done:?}");
    started.elapsed()
}

async fn confined(stage: &Stage, door: &Opened, command: &[String]) -> Duration {
    let effect = Effect::Spawn { argv: command.to_vec() };
    let resolved = stage.sandbox.resolve(&stage.scene, effect).await.unwrap();
    let started = Instant::now();
    let Decision::Allow(permit) = stage.policy.decide(&role(), &tool(), resolved) else {
        panic!("the rule allows it");
    };
    let stop = CancellationToken::new();
    let company = Company { stop: &stop, heard: &|_, _| {}, door: Some(door) };
    let result = stage.sandbox.run(permit, Attempt::First, company).await.unwrap();
    let took = started.elapsed();
    let EffectResult::Ran(ran) = result else { panic!("{result:?}") };
    assert_eq!(ran.exit, Exit::Code(0), "{ran:?}");
    assert!(ran.network.received >= (MIB << 20) as u64, "{:?}", ran.network);
    took
}
