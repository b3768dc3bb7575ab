//! What the braces in a case stand for.

use std::path::PathBuf;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::support::{TestDaemon, processes::fork_server};

/// The key of the model's server, which the daemon has from its environment. Some of it looks otherwise in a URL.
pub(super) const KEY: &str = "planted+key/4f9a8b7c6d5e";
const HEAD: usize = 11;

#[derive(Debug)]
pub(super) struct Words {
    home: PathBuf,
    state: PathBuf,
    daemon: String,
    fork_server: String,
    port: String,
}

impl Words {
    pub(super) fn of(daemon: &TestDaemon) -> Self {
        Self {
            home: daemon.home().canonicalize().unwrap(),
            state: daemon.state().canonicalize().unwrap(),
            daemon: daemon.pid().as_raw_nonzero().to_string(),
            fork_server: fork_server(daemon.pid()).to_string(),
            port: daemon.tcp.rsplit_once(':').unwrap().1.to_owned(),
        }
    }

    pub(super) fn text(&self, id: &str, text: &str) -> String {
        let path = |path: PathBuf| path.display().to_string();
        let calls = SYSTEM_CALLS.map(|(name, number)| (name, number.to_string()));
        let launcher = env!("CARGO_BIN_EXE_agentd-sandbox").to_owned();
        let words = [
            ("OUT", path(self.home.join("outside").join(id))),
            ("REL", format!("../../outside/{id}")),
            ("HOME", path(self.home.clone())),
            ("STATE", path(self.state.clone())),
            ("LAUNCHER", launcher),
            ("DAEMON", self.daemon.clone()),
            ("FORK_SERVER", self.fork_server.clone()),
            ("PORT", self.port.clone()),
            ("SIXTY", "git status; ".repeat(60)),
            ("LONG", "x".repeat(5000)),
            ("NEAR", KEY[..KEY.len() - 1].repeat((1 << 20) / KEY.len())),
            ("LARGE", format!("# {}\n", "x".repeat(50 << 20))),
            ("KEY", KEY.to_owned()),
            ("KEY_HEAD", KEY[..HEAD].to_owned()),
            ("KEY_TAIL", KEY[HEAD..].to_owned()),
            ("KEY_IN_BASE64", STANDARD.encode(KEY)),
            ("KEY_IN_HEXADECIMAL", KEY.bytes().map(|byte| format!("{byte:02x}")).collect()),
            ("KEY_IN_A_URL", utf8_percent_encode(KEY, NON_ALPHANUMERIC).to_string()),
        ];
        words.into_iter().chain(calls).fold(text.to_owned(), |text, (name, word)| {
            match text.contains(&format!("{{{name}}}")) {
                true => text.replace(&format!("{{{name}}}"), &word),
                false => text,
            }
        })
    }

    /// The same in every text of a call's arguments.
    pub(super) fn json(&self, id: &str, value: &Value) -> Value {
        match value {
            Value::String(text) => self.text(id, text).into(),
            Value::Array(list) => list.iter().map(|one| self.json(id, one)).collect(),
            Value::Object(map) => {
                map.iter().map(|(key, one)| (key.clone(), self.json(id, one))).collect()
            }
            other => other.clone(),
        }
    }
}

const SYSTEM_CALLS: [(&str, libc::c_long); 11] = [
    ("SYS_ptrace", libc::SYS_ptrace),
    ("SYS_process_vm_readv", libc::SYS_process_vm_readv),
    ("SYS_socket", libc::SYS_socket),
    ("SYS_keyctl", libc::SYS_keyctl),
    ("SYS_bpf", libc::SYS_bpf),
    ("SYS_perf_event_open", libc::SYS_perf_event_open),
    ("SYS_userfaultfd", libc::SYS_userfaultfd),
    ("SYS_io_uring_setup", libc::SYS_io_uring_setup),
    ("SYS_open_tree", libc::SYS_open_tree),
    ("SYS_prctl", libc::SYS_prctl),
    ("SYS_getpid", libc::SYS_getpid),
];
