//! What programs reach: nothing but what the policy allows, in an internet of the test's own.

use agentd::{
    proto::v1,
    scripted::{Reply, Seen, Turn},
};
use serde_json::{Value, json};

use crate::support::{
    Backend, Settings, Story, TestDaemon,
    internet::{ALLOWED, Internet, Names, OTHER, OWN, PRIVATE, SECOND},
    wait_until,
};

pub(crate) const NETWORK: &str = "\
schema: agentd/network/v1
rules:
  - {id: web, hosts: ['*.example.com', 93.184.215.14], ports: [80, 443], decision: allow, why: a service}
  - {id: raw, hosts: [raw.example.com], ports: [9000], tunnels: anything, decision: allow, why: an echo}
  - {id: read, hosts: [read.example.org], ports: [80], methods: [GET], decision: allow, why: to be read}
  - id: little
    hosts: [little.example.org]
    ports: [80]
    most_sent_kib: 64
    most_received_kib: 64
    decision: allow
    why: a little of it
  - {id: never, hosts: [never.example.com], decision: deny, why: nobody's business}
";

pub(crate) const COMMANDS: &str = "
  - {id: test.net, argv: [bash, net.sh], network: [web, raw, read, little], why: the test's own script}
";

pub(crate) fn names() -> Names {
    Names::from([
        ("allowed.example.com", vec![vec![ALLOWED]]),
        ("raw.example.com", vec![vec![ALLOWED]]),
        ("never.example.com", vec![vec![ALLOWED]]),
        ("read.example.org", vec![vec![ALLOWED]]),
        ("little.example.org", vec![vec![ALLOWED]]),
        ("other.example.net", vec![vec![OTHER]]),
        ("evilexample.com", vec![vec![OTHER]]),
        ("example.com", vec![vec![OTHER]]),
        ("allowed.example.com.evil.test", vec![vec![OTHER]]),
        ("private.example.com", vec![vec![PRIVATE]]),
        ("loopback.example.com", vec![vec![[127, 0, 0, 1].into()]]),
        ("own.example.com", vec![vec![OWN]]),
        ("second.example.com", vec![vec![SECOND]]),
        ("mixed.example.com", vec![vec![ALLOWED, PRIVATE]]),
        ("rebinding.example.com", vec![vec![ALLOWED], vec![PRIVATE]]),
        ("flipping.example.com", vec![vec![ALLOWED], vec![PRIVATE]]),
    ])
}

/// A daemon in an internet, whose model runs `bash net.sh` once.
pub(crate) struct Stage {
    pub(crate) internet: Internet,
    pub(crate) daemon: TestDaemon,
    backend: Backend,
}

impl Stage {
    pub(crate) fn open(allow_net: &str) -> Option<Self> {
        let internet = Internet::open(names())?;
        let backend = Backend::start_within(&internet, |seen: &Seen| {
            Reply::Answer(match seen.turn {
                1 => Turn::call("shell_exec", json!({"command": ["bash", "net.sh"]})),
                _ => Turn::say("done"),
            })
        });
        let settings = Settings {
            base_url: backend.url(),
            commands: COMMANDS.into(),
            network: Some(NETWORK.into()),
            environment: vec![("ALLOW_NET".into(), allow_net.into())],
            ..Settings::default()
        };
        let daemon = TestDaemon::start_within(settings, &internet);
        Some(Self { internet, daemon, backend })
    }

    pub(crate) async fn carry_out(&self, script: &str) -> Story {
        self.daemon.put("net.sh", script);
        let story = self.daemon.carry_out("reach it").await;
        story.assert_calls_are_tied();
        self.backend.assert_paired();
        story
    }
}

fn stdout(story: &Story) -> String {
    let (_, output) = story.outputs().remove(0);
    output["stdout"].as_str().unwrap_or_else(|| panic!("{output}")).to_owned()
}

/// What was decided about each thing that a program wanted to reach.
pub(crate) fn reached(story: &Story) -> Vec<String> {
    let said = |entry: Value| {
        let text = |key: &str| entry[key].as_str().unwrap().to_owned();
        let port = &entry["port"];
        format!("{} {}:{port} {} {}", text("method"), text("host"), text("decision"), text("rule"))
    };
    story.payloads("connection").into_iter().map(said).collect()
}

#[tokio::test]
async fn a_program_reaches_what_the_policy_allows_by_requests_tunnels_and_socks() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage
        .carry_out(
            "curl -sS http://allowed.example.com/a\n\
             curl -sS -d sent http://ALLOWED.example.com.:80/b http://allowed.example.com/c\n\
             curl -sSk https://allowed.example.com/ | grep -c Cipher\n\
             curl -sSk --noproxy '' -x socks5h://127.0.0.1:3128 https://allowed.example.com/ | grep -c Cipher\n\
             curl -sS http://93.184.215.14/d\n",
        )
        .await;

    let here = format!("here is {ALLOWED}\n");
    let pages = [here.repeat(3), "2\n".repeat(2)].concat();
    let (_, output) = story.outputs().remove(0);
    let text = stdout(&story);
    assert!(text.starts_with(&here.repeat(3)) && text.ends_with(&here), "{output}");
    assert_eq!(text.lines().count(), pages.lines().count() + 1, "{output}");
    let web = |method: &str, port: u16| format!("{method} allowed.example.com:{port} allow web");
    assert_eq!(
        reached(&story),
        [
            web("GET", 80),
            web("POST", 80),
            web("POST", 80),
            web("CONNECT", 443),
            web("CONNECT", 443),
            format!("GET {ALLOWED}:80 allow web"),
        ]
    );
    assert_eq!(
        stage.internet.seen().requests[..2],
        [
            format!("{ALLOWED} GET /a HTTP/1.1 host: allowed.example.com"),
            format!("{ALLOWED} POST /b HTTP/1.1 host: allowed.example.com"),
        ]
    );
    let used = &story.payloads("tool_output")[0]["used"]["network"];
    assert_eq!(used["opened"], 6);
    assert!(used["received"].as_u64().unwrap() > 1000, "{used}");
    assert_eq!(used["dialled"][0], format!("{ALLOWED} for allowed.example.com:80"));
    let noted = story.entries.iter().find(|entry| entry.kind == "connection").unwrap();
    assert!(noted.policy_revision.starts_with("sha256:"));
    assert!(stage.daemon.audit().await.intact);
}

#[tokio::test]
async fn what_is_refused_is_told_to_the_program_to_the_model_and_to_the_record() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage
        .carry_out(
            "curl -s http://other.example.net/\n\
             curl -s -w '%{http_connect}\\n' https://other.example.net/\n\
             curl -s http://never.example.com/\n\
             curl -s -d x http://read.example.org/\n",
        )
        .await;

    let (_, output) = story.outputs().remove(0);
    let refused: Vec<_> = output["network_refused"].as_array().unwrap().iter().collect();
    assert_eq!(refused.len(), 4, "{output}");
    let first = refused[0].as_str().unwrap();
    assert!(first.starts_with("other.example.net:80 is denied by builtin/no-rule: "), "{first}");
    assert!(first.contains("*.example.com, 93.184.215.14 at port 80, 443"), "{first}");
    let text = stdout(&story);
    assert!(text.contains("agentd: other.example.net:80 is denied by builtin/no-rule"), "{text}");
    assert!(text.contains("403"), "{text}");
    assert_eq!(
        reached(&story),
        [
            "GET other.example.net:80 deny builtin/no-rule",
            "CONNECT other.example.net:443 deny builtin/no-rule",
            "GET never.example.com:80 deny never",
            "POST read.example.org:80 deny builtin/no-rule",
        ]
    );
    // What is not let through is not even looked up.
    let seen = stage.internet.seen();
    assert_eq!((seen.requests.len(), &seen.names), (0, &Vec::new()));
}

#[tokio::test]
async fn with_allow_net_off_nothing_is_reached_whatever_the_rules_say() {
    let Some(stage) = Stage::open("false") else { return };

    let story = stage.carry_out("curl -s http://allowed.example.com/").await;

    assert_eq!(reached(&story), ["GET allowed.example.com:80 deny builtin/allow-net"]);
    assert!(stage.internet.seen().names.is_empty());
}

#[tokio::test]
async fn a_rule_s_limit_of_bytes_holds_for_all_that_a_call_sends_and_gets() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage
        .carry_out(
            "curl -s http://allowed.example.com/large | wc -c\n\
             curl -s http://little.example.org/large | wc -c\n\
             head -c 200000 /dev/zero | curl -s -m 5 -H Expect: --data-binary @- http://little.example.org/up || echo stopped\n",
        )
        .await;

    let text = stdout(&story);
    let counts: Vec<&str> = text.lines().collect();
    assert_eq!(counts[0], (1 << 20).to_string());
    let got: u64 = counts[1].parse().unwrap();
    assert!(got <= 65536, "{text}");
    let last = reached(&story).pop().unwrap();
    assert!(last.ends_with("little.example.org:80 deny builtin/bytes"), "{last}");
    assert!(!stage.internet.seen().requests.iter().any(|one| one.contains("/up")), "{text}");
    let used = &story.payloads("tool_output")[0]["used"]["network"];
    assert!(used["sent"].as_u64().unwrap() <= 65536 + 4096, "{used}");
}

/// Says when its tunnel is open, and when it is closed.
const HOLDS_A_TUNNEL: &str = "exec 3<>/dev/tcp/127.0.0.1/3128\n\
     printf 'CONNECT raw.example.com:9000 HTTP/1.1\\r\\nHost: raw.example.com:9000\\r\\n\\r\\n' >&3\n\
     head -2 <&3 >/dev/null; echo hello >&3; head -1 <&3; touch open; cat <&3; echo closed\n";

#[tokio::test]
async fn a_policy_that_closes_what_is_open_cuts_it_off_by_rpc_and_by_signal() {
    let Some(stage) = Stage::open("true") else { return };
    let daemon = &stage.daemon;
    daemon.put("net.sh", HOLDS_A_TUNNEL);
    for by in ["rpc", "signal"] {
        let run = daemon.submit("reach it").await;
        wait_until("the tunnel is open", || daemon.read("open").is_some()).await;

        let network = NETWORK.replace("hosts: [raw.example.com]", "hosts: []");
        std::fs::write(daemon.home().join("policies/network.yaml"), network).unwrap();
        match by {
            "rpc" => {
                let request = v1::ReloadPolicyRequest::default();
                daemon.client().await.policy().reload_policy(request).await.unwrap();
            }
            _ => rustix::process::kill_process(daemon.pid(), rustix::process::Signal::HUP).unwrap(),
        }

        let story = daemon.story(&run.id).await;
        assert_eq!(stdout(&story), "hello\nclosed\n", "{by}");
        let (_, output) = story.outputs().remove(0);
        let told = output["network_refused"][0].as_str().unwrap();
        assert!(
            told.starts_with("raw.example.com:9000 is denied by builtin/no-rule: it was cut off"),
            "{told}"
        );
        std::fs::remove_file(daemon.workspace().join("open")).unwrap();
        std::fs::write(daemon.home().join("policies/network.yaml"), NETWORK).unwrap();
        let request = v1::ReloadPolicyRequest::default();
        daemon.client().await.policy().reload_policy(request).await.unwrap();
    }
}

#[tokio::test]
async fn a_name_is_looked_up_once_and_what_was_looked_at_is_what_is_dialled() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage.carry_out("curl -s http://rebinding.example.com/").await;

    assert_eq!(stdout(&story), format!("here is {ALLOWED}\n"));
    // The next who asks is told the private address.
    let asked = || std::net::ToSocketAddrs::to_socket_addrs("rebinding.example.com:80").unwrap();
    let now: Vec<_> = stage.internet.inside(move || asked().map(|one| one.ip()).collect());
    assert_eq!(now, [PRIVATE]);
    let seen = stage.internet.seen();
    assert_eq!(seen.requests, [format!("{ALLOWED} GET / HTTP/1.1 host: rebinding.example.com")]);
}

#[tokio::test]
async fn a_program_whose_rule_names_nothing_has_no_way_out_at_all() {
    let Some(stage) = Stage::open("true") else { return };
    let network = format!(
        "{NETWORK}  - {{id: more, hosts: [x.test], ports: [1], decision: allow, why: x}}\n"
    );
    std::fs::write(stage.daemon.home().join("policies/network.yaml"), network).unwrap();
    let tools = stage.daemon.home().join("policies/tools.yaml");
    let text = std::fs::read_to_string(&tools).unwrap();
    std::fs::write(&tools, text.replace("network: [web, raw, read, little], ", "")).unwrap();
    let request = v1::ReloadPolicyRequest::default();
    stage.daemon.client().await.policy().reload_policy(request).await.unwrap();

    let story = stage
        .carry_out(
            "env | grep -ci proxy; (exec 3<>/dev/tcp/127.0.0.1/3128) 2>/dev/null || echo none",
        )
        .await;

    assert_eq!(stdout(&story), "0\nnone\n");
}

#[tokio::test]
async fn a_call_that_asks_too_often_reaches_nothing_any_more() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage
        .carry_out(
            "seq 1100 | sed 's|.*|url = \"http://other.example.net/&\"|' | curl -s -K - | grep -c 'may ask for 1000'\n",
        )
        .await;

    assert_eq!(stdout(&story), "100\n");
    assert_eq!(reached(&story).len(), 1000);
}

#[tokio::test]
async fn a_policy_that_wants_tls_from_now_on_cuts_what_began_without_it() {
    let Some(stage) = Stage::open("true") else { return };
    let daemon = &stage.daemon;
    daemon.put("net.sh", HOLDS_A_TUNNEL);
    let run = daemon.submit("reach it").await;
    wait_until("the tunnel is open", || daemon.read("open").is_some()).await;

    let network = NETWORK.replace("tunnels: anything", "tunnels: tls");
    std::fs::write(daemon.home().join("policies/network.yaml"), network).unwrap();
    let request = v1::ReloadPolicyRequest::default();
    daemon.client().await.policy().reload_policy(request).await.unwrap();

    let story = daemon.story(&run.id).await;
    assert_eq!(stdout(&story), "hello\nclosed\n");
    let denied = "CONNECT raw.example.com:9000 deny builtin/tls-name";
    assert_eq!(reached(&story).last().unwrap(), denied);
    // Each entry names the policy that decided it.
    let noted = |kind: &'static str| story.entries.iter().filter(move |entry| entry.kind == kind);
    let revisions: Vec<_> = noted("connection").map(|entry| &entry.policy_revision).collect();
    assert_eq!(noted("decision").next().map(|entry| &entry.policy_revision), Some(revisions[0]));
    assert_ne!(revisions[0], revisions[1]);
}

#[tokio::test]
async fn who_asks_and_is_gone_at_once_has_asked_all_the_same() {
    let Some(stage) = Stage::open("true") else { return };

    let story = stage
        .carry_out(
            "for n in $(seq 20); do exec {fd}<>/dev/tcp/127.0.0.1/3128; \
             printf 'CONNECT x.test:1 HTTP/1.1\\r\\nHost: x.test:1\\r\\n\\r\\n' >&$fd; done\n\
             read -r line <&$fd; kill -9 $$\n",
        )
        .await;

    let used = &story.payloads("tool_output")[0]["used"]["network"];
    let entries = reached(&story);
    assert_eq!(used["refused"], entries.len(), "{entries:?}");
    assert!(!entries.is_empty());
    let kinds = story.kinds();
    let last = kinds.iter().rposition(|kind| *kind == "connection").unwrap();
    let output = kinds.iter().position(|kind| *kind == "tool_output").unwrap();
    assert!(last < output, "{kinds:?}");
}

#[tokio::test]
async fn what_a_command_may_reach_is_shown_and_explained() {
    let Some(stage) = Stage::open("true") else { return };

    let shown = stage.daemon.agentctl(&["policy", "show"]).await;
    let shown = String::from_utf8(shown.stdout).unwrap();
    for part in ["ALLOW_NET", "network *.example.com, 93.184.215.14 at port 80, 443", "never"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let explained = stage.daemon.agentctl(&["policy", "explain", "bash net.sh"]).await;
    let explained = String::from_utf8(explained.stdout).unwrap();
    for part in ["may reach", "raw: raw.example.com at port 9000", "by GET of plain http"] {
        assert!(explained.contains(part), "{part}: {explained}");
    }
}
