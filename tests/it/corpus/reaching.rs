//! Cases that reach for something, in an internet of the test's own.

use std::{fs, process::Command};

use super::{
    Findings,
    cases::{Case, Change, cases},
    files::{changed, restored},
    name_unchecked, shown,
    words::Words,
};
use crate::{
    egress,
    support::{Story, wait_until},
};

/// What the scripts that reach for something are written with: a request to the proxy, and one over SOCKS (an
/// address, and a command unless it is to connect); both succeed when what they ask for is granted.
const ASKING: &str = r#"
ask() {
  exec 3<>/dev/tcp/127.0.0.1/3128; printf "$1" >&3; IFS= read -r line <&3
  case "$line" in *" 200"*) true;; *) false;; esac
}
socks() {
  exec 3<>/dev/tcp/127.0.0.1/3128; printf '\5\1\0' >&3; head -c 2 <&3 >/dev/null
  printf "\5\\${2:-1}\0$1" >&3; [ "$(head -c 2 <&3 | od -An -tu1 | tr -d ' ')" = 50 ]
}
"#;

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn nothing_of_the_corpus_gets_past_the_proxy_or_around_it() {
    let all = cases(|case| case.reach.is_some());
    for allow_net in [true, false] {
        let some: Vec<_> = all
            .iter()
            .filter(|case| case.reach.as_ref().is_some_and(|reach| reach.allow_net == allow_net))
            .collect();
        let Some(stage) = egress::Stage::open(&allow_net.to_string()) else {
            return name_unchecked(&all, "no internet of the test's own can be had here");
        };
        if allow_net {
            fair_requests_are_granted(&stage).await;
        }
        let mut findings = Findings::default();
        for case in some {
            reaches_nothing(&stage, case, &mut findings).await;
        }
        findings.assert_none();
    }
}

async fn fair_requests_are_granted(stage: &egress::Stage) {
    let fair = [
        r"ask 'CONNECT allowed.example.com:443 HTTP/1.1\r\nHost: allowed.example.com:443\r\n\r\n'",
        r"socks '\3\23allowed.example.com\1\273'",
    ];
    for asked in fair {
        let story = stage.carry_out(&format!("{ASKING}{asked} && echo in")).await;
        assert_eq!(story.outputs()[0].1["stdout"], "in\n", "{asked}");
    }
}

async fn reaches_nothing(stage: &egress::Stage, case: &Case, findings: &mut Findings) {
    let reach = case.reach.as_ref().unwrap();
    let words = Words::of(&stage.daemon);
    let script = |attack: &str| format!("{ASKING}{}\n", words.text(&case.id, attack));
    if case.no_control.is_none() {
        let control = script(reach.control.as_ref().unwrap_or(&reach.script));
        let run =
            move || Command::new("timeout").args(["10", "bash", "-c", &control]).output().unwrap();
        let done = stage.internet.inside(run);
        if !done.status.success() {
            findings.powerless.push(format!("{}: {}", case.id, shown(&done)));
        }
    }
    let before = {
        let seen = stage.internet.seen();
        (seen.requests.len(), seen.names.len())
    };

    stage.daemon.put("attack.sh", &script(&reach.script));
    let judged = "timeout 10 bash attack.sh >/dev/null 2>&1; code=$?
         case $code in 0) echo in;; 124) echo hung;; *) echo out;; esac";
    let story = match &reach.then {
        None => stage.carry_out(judged).await,
        Some(then) => changed_midway(stage, case, judged, then).await,
    };

    let (_, output) = &story.outputs()[0];
    let expected = if reach.gets_through.is_some() { "in\n" } else { "out\n" };
    if output["stdout"] != expected {
        findings.through.push(format!("{}: {output}", case.id));
    }
    let decided = egress::reached(&story);
    let wanted: Vec<_> = reach.decided.iter().map(|one| words.text(&case.id, one)).collect();
    if decided != wanted {
        findings.otherwise.push(format!("{}: {decided:?} instead of {wanted:?}", case.id));
    }
    let seen = stage.internet.seen();
    let expected = |host: &str| host.ends_with(".example.com");
    let asked = &seen.requests[before.0..];
    let may = |one: &String| reach.may_ask.as_ref().is_some_and(|host| one.contains(host));
    if !asked.iter().all(may) || !seen.names[before.1..].iter().all(|name| expected(name)) {
        findings.through.push(format!("{}: {asked:?} {:?}", case.id, &seen.names[before.1..]));
    }
}

/// Changes the policy once the script has made the file `open`, and tells the script by the file `go`.
async fn changed_midway(stage: &egress::Stage, case: &Case, script: &str, then: &Change) -> Story {
    let daemon = &stage.daemon;
    daemon.put("net.sh", script);
    let run = daemon.submit("reach it").await;
    let open = wait_until("it is open", || daemon.read("open").is_some());
    tokio::select! {
        () = open => {}
        story = daemon.story(&run.id) => panic!("{}: it never opened: {:?}", case.id, story.entries),
    }
    let before = changed(daemon, &Words::of(daemon), &case.id, then).await;
    daemon.put("go", "");
    let story = daemon.story(&run.id).await;
    restored(daemon, then, before).await;
    for name in ["open", "go"] {
        fs::remove_file(daemon.workspace().join(name)).unwrap();
    }
    story
}
