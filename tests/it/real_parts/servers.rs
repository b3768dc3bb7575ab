//! The parts: where they are, how each is started, and what the servers tell of their requests. Judges
//! nothing; who looks for the tests, see `real_parts.rs`.

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Write as _},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread::{self, JoinHandle},
};

use reqwest::Method;
use rustls::crypto::ring;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::text;
use crate::support::PATIENCE;

/// Where the parts are.
pub(crate) struct Parts(PathBuf);

/// The parts; where there are none, says what is not checked.
pub(crate) fn parts(what: &str) -> Option<Parts> {
    match env::var_os("AGENTD_REAL_PARTS").filter(|directory| !directory.is_empty()) {
        Some(directory) => Some(Parts(directory.into())),
        None => {
            // Written directly: what a test that passes prints is not shown.
            let line =
                format!("NOT CHECKED: {what} (set AGENTD_REAL_PARTS, see scripts/real-parts.sh)\n");
            io::stderr().write_all(line.as_bytes()).unwrap();
            None
        }
    }
}

/// Who answers what no fixture of aimock fits.
pub(crate) enum Upstream {
    /// Nobody: such a request is refused.
    None,
    /// llmock, to which aimock passes it on as it came; so its journal shows what aimock's leaves out.
    Llmock { url: String },
}

impl Parts {
    /// A program of the parts, with nothing of our own surroundings but the path to Node.
    fn command(&self, program: &str) -> Command {
        let program = self.0.join(program);
        assert!(program.is_file(), "{} is missing: run scripts/real-parts.sh", program.display());
        let mut command = Command::new(program);
        command.env_clear().env("PATH", env::var_os("PATH").unwrap()).stdin(Stdio::null());
        command
    }

    pub(crate) fn llmock(&self) -> Server {
        self.llmock_with(&[])
    }

    pub(crate) fn llmock_with(&self, flags: &[&str]) -> Server {
        let mut command = self.command("python/bin/llmock");
        command.args(["serve", "--host", "127.0.0.1", "--port", "0", "--log-level", "info"]);
        command.args(flags);
        Server::start(command, "Uvicorn running on ", "/_llmock/reset", scratch())
    }

    /// A server that only chats, and answers as the rules say.
    pub(crate) fn fakellm(&self, rules: Value) -> Server {
        let home = scratch();
        let configuration = home.path().join("fakellm.yaml");
        fs::write(&configuration, json!({"version": 1, "rules": rules}).to_string()).unwrap();
        let mut command = self.command("python/bin/fakellm");
        command.args(["serve", "--port", "0", "--config"]).arg(configuration);
        Server::start(command, "Uvicorn running on ", "/_fakellm/reset", home)
    }

    /// llama.cpp's own, on the tiny model: it loads for a while. With the base URL.
    pub(crate) fn llama(&self) -> (Server, String) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let place = self.0.join("llama");
        let mut command = self.command("llama/llama-server");
        command.args(["-m", "model.gguf", "--jinja", "-c", "4096", "-n", "200", "--temp", "0"]);
        command.args(["--threads", "1", "--host", "127.0.0.1", "--port", &free.port().to_string()]);
        let home = scratch();
        let server = Server::start_in(&place, command, "listening on ", "", home);
        (server, format!("http://{free}/v1"))
    }

    pub(crate) fn aimock(&self, upstream: &Upstream, fixtures: Value) -> Server {
        let home = scratch();
        let file = home.path().join("fixtures.json");
        fs::write(&file, json!({"fixtures": fixtures}).to_string()).unwrap();
        let mut llm = json!({"fixtures": file, "logLevel": "info"});
        if let Upstream::Llmock { url } = upstream {
            llm["record"] = json!({"providers": {"openai": url}, "proxyOnly": true});
        }
        let strict = matches!(upstream, Upstream::None);
        let configuration = home.path().join("aimock.json");
        fs::write(&configuration, json!({"strict": strict, "llm": llm}).to_string()).unwrap();
        let mut command = self.command("aimock/node_modules/.bin/aimock");
        command.arg("--config").arg(configuration).args(["--host", "127.0.0.1", "--port", "0"]);
        let forgets = "/__aimock/reset/journal";
        Server::start(command, "aimock server listening on ", forgets, home)
    }

    pub(super) fn python(&self) -> Command {
        self.python_script("follow.py")
    }

    /// A script of `tests/it/python`.
    pub(crate) fn python_script(&self, name: &str) -> Command {
        let mut command = self.command("python/bin/python");
        // What it compiles has no place in the tree.
        command.arg("-B").arg(format!("{}/tests/it/python/{name}", env!("CARGO_MANIFEST_DIR")));
        command
    }

    /// A script of `tests/it/node`, with the parts' packages.
    pub(crate) fn node_script(&self, name: &str) -> Command {
        let packages = self.0.join("node/node_modules");
        assert!(packages.is_dir(), "{} is missing: run scripts/real-parts.sh", packages.display());
        let mut command = Command::new("node");
        command.env_clear().env("PATH", env::var_os("PATH").unwrap()).env("NODE_PATH", packages);
        command.arg(format!("{}/tests/it/node/{name}", env!("CARGO_MANIFEST_DIR")));
        command.stdin(Stdio::null());
        command
    }

    pub(crate) fn buf(&self) -> Command {
        self.command("buf/node_modules/.bin/buf")
    }
}

fn scratch() -> TempDir {
    tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap()
}

/// A server as a process of its own; killed, by its id, when it goes out of scope.
pub(crate) struct Server {
    child: Child,
    pub(crate) url: String,
    /// Where it is told to.
    forgets: &'static str,
    log: Arc<Mutex<String>>,
    reader: Option<JoinHandle<()>>,
    _home: TempDir,
}

impl Server {
    /// Starts the program, and waits for the line that tells its address after `announced`.
    fn start(
        command: Command,
        announced: &'static str,
        forgets: &'static str,
        home: TempDir,
    ) -> Self {
        let place = home.path().to_owned();
        Self::start_in(&place, command, announced, forgets, home)
    }

    fn start_in(
        place: &Path,
        mut command: Command,
        announced: &'static str,
        forgets: &'static str,
        home: TempDir,
    ) -> Self {
        let (output, input) = io::pipe().unwrap();
        command.current_dir(place).env("HOME", home.path());
        command.stdout(input.try_clone().unwrap()).stderr(input);
        let child = command.spawn().unwrap();
        // It holds the writing ends too: the reader ends when the last of them is closed.
        drop(command);
        let log = Arc::new(Mutex::new(String::new()));
        let (found, address) = mpsc::channel();
        let reader = thread::Builder::new().name("server-log".into()).spawn({
            let log = log.clone();
            move || read_log(output, announced, &log, &found)
        });
        let mut server = Self {
            child,
            url: String::new(),
            forgets,
            log,
            reader: Some(reader.unwrap()),
            _home: home,
        };
        match address.recv_timeout(PATIENCE) {
            Ok(url) => server.url = url,
            Err(error) => {
                panic!("the server is not ready, {error}: {}", server.log.lock().unwrap())
            }
        }
        server
    }

    pub(super) async fn get(&self, path: &str) -> Value {
        self.ask(Method::GET, path, "").await
    }

    pub(super) async fn post(&self, path: &str, body: impl Into<String>) -> Value {
        self.ask(Method::POST, path, body).await
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<String>) -> Value {
        // The client wants one even where it speaks no TLS. A second test finds it there already.
        let _ = ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap();
        let url = format!("{}{path}", self.url);
        let answer = client.request(method, url).body(body.into()).send().await.unwrap();
        let (status, body) = (answer.status(), answer.text().await.unwrap());
        assert!(status.is_success(), "{path}: {status} {body}\n{}", self.log.lock().unwrap());
        serde_json::from_str(&body).unwrap()
    }

    /// Whatever it was asked before is nothing to us.
    pub(super) async fn forget(&self) {
        self.post(self.forgets, "").await;
    }

    /// llmock: how the next requests for an answer are answered.
    pub(super) async fn script(&self, behaviors: impl IntoIterator<Item = Value>) {
        let mut behaviors: Vec<Value> = behaviors.into_iter().collect();
        // The list of models is a request too, and would take the first of them.
        behaviors
            .iter_mut()
            .for_each(|behavior| behavior["match"] = json!({"path": "/v1/responses"}));
        self.post("/_llmock/scenario", json!({"behaviors": behaviors}).to_string()).await;
    }

    /// llmock: what it thinks of its client.
    pub(super) async fn verdict(&self) -> Value {
        self.get("/_llmock/verdict").await
    }

    /// llmock: bodies of the requests for an answer, as they came, in order.
    pub(super) async fn requests(&self) -> Vec<Value> {
        let all = self.get("/_llmock/requests").await;
        let mut records = all["requests"].as_array().unwrap().clone();
        records.retain(|record| record["path"] == "/v1/responses");
        records.into_iter().map(|mut record| record["body"].take()).collect()
    }

    /// llmock: types of the items of each request, in order. Fails where calls and outputs are not paired.
    pub(super) async fn conversations(&self) -> Vec<String> {
        let types = |request: &Value| {
            let items = request["input"].as_array().unwrap();
            let ids = |kind: &str| -> Vec<String> {
                let of_kind = items.iter().filter(|item| item["type"] == kind);
                of_kind.map(|item| text(&item["call_id"]).to_owned()).collect()
            };
            assert_eq!(ids("function_call"), ids("function_call_output"), "{request}");
            let types: Vec<&str> = items.iter().map(|item| text(&item["type"])).collect();
            types.join(" ")
        };
        self.requests().await.iter().map(types).collect()
    }

    /// aimock: status and source of its answers to requests for one, in order.
    pub(super) async fn answered(&self) -> Vec<String> {
        let journal = self.get("/__aimock/journal").await;
        let asked =
            journal.as_array().unwrap().iter().filter(|entry| entry["path"] == "/v1/responses");
        let answer = |entry: &Value| {
            let response = &entry["response"];
            let fixture = match response["fixture"].is_null() {
                true => "none",
                false => "fixture",
            };
            format!("{} {}", response["status"], response["source"].as_str().unwrap_or(fixture))
        };
        asked.map(answer).collect()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = self.reader.take().map(JoinHandle::join);
    }
}

/// Reads to the end, so that the server never waits for us; tells the address when it comes by.
fn read_log(
    output: io::PipeReader,
    announced: &str,
    log: &Mutex<String>,
    found: &mpsc::Sender<String>,
) {
    for line in BufReader::new(output).lines().map_while(Result::ok) {
        let url = line.split_once(announced).and_then(|(_, rest)| rest.split_whitespace().next());
        if let Some(url) = url {
            let _ = found.send(url.to_owned());
        }
        *log.lock().unwrap() += &format!("{line}\n");
    }
}
