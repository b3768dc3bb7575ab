//! An internet of the test's own: two network namespaces that know nothing of any other, with public-looking
//! addresses outside, servers on them, and a resolver whose answers the test gives. No packet leaves it, and it
//! is gone with the test. Takes root and `ip`.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::{Ipv4Addr, TcpListener, TcpStream, UdpSocket},
    process::{Child, Command, Stdio},
    sync::{Arc, Mutex, mpsc},
    thread,
    time::Duration,
};

use rustix::thread::UnshareFlags;
use tempfile::TempDir;

/// Where the servers of the outside are.
pub(crate) const ALLOWED: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 14);
pub(crate) const OTHER: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 15);
/// A server that is not of the public internet, and can be reached all the same.
pub(crate) const PRIVATE: Ipv4Addr = Ipv4Addr::new(10, 66, 0, 1);
/// A public address that is the daemon's own machine's.
pub(crate) const OWN: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 101);
/// Another one in the same network.
pub(crate) const SECOND: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 102);
const RESOLVER: Ipv4Addr = Ipv4Addr::new(93, 184, 215, 53);
/// The link between the two.
const INSIDE_END: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const OUTSIDE_END: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);

type Job = Box<dyn FnOnce() + Send>;

/// A thread in namespaces of its own; what it starts is in them too.
struct Place {
    jobs: mpsc::Sender<Job>,
    thread: i32,
}

impl Place {
    fn open() -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel::<Job>();
        let (said, heard) = mpsc::channel();
        thread::spawn(move || {
            #[expect(unsafe_code, reason = "unshare may take away what other code relies on")]
            // SAFETY: this thread shares nothing but memory with the others from here on.
            let done = unsafe {
                rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS)
            };
            said.send(done.map(|()| rustix::thread::gettid().as_raw_nonzero().get())).unwrap();
            queue.iter().for_each(|job| job());
        });
        Ok(Self { jobs, thread: heard.recv().unwrap()? })
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (said, heard) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(said.send(job())))).unwrap();
        heard.recv().expect("the job failed")
    }

    fn sh(&self, script: String) {
        let done = self.run(move || Command::new("sh").args(["-ec", &script]).output().unwrap());
        assert!(done.status.success(), "{done:?}");
    }
}

/// What has been seen from outside.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Names that were looked up, in order, each kind of record for itself.
    pub(crate) names: Vec<String>,
    /// First lines and `Host` headers of requests, with the address they came to.
    pub(crate) requests: Vec<String>,
}

/// What each name stands for: lists of addresses, each for one question, the last for all that follow.
pub(crate) type Names = BTreeMap<&'static str, Vec<Vec<Ipv4Addr>>>;

pub(crate) struct Internet {
    inside: Place,
    seen: Arc<Mutex<Seen>>,
    tls: Child,
    _files: TempDir,
}

impl Internet {
    /// None: this machine does not let the test have one. Says so.
    pub(crate) fn open(names: Names) -> Option<Self> {
        let is_there = |program: &str, flag| Command::new(program).arg(flag).output().is_ok();
        let tools = [("ip", "-V"), ("curl", "-V"), ("openssl", "version"), ("bash", "--version")];
        let places = (Place::open(), Place::open());
        let (true, (Ok(inside), Ok(outside))) =
            (tools.iter().all(|(program, flag)| is_there(program, flag)), places)
        else {
            super::not_checked(
                "attacks on the network (they take root that may make namespaces, ip, curl, openssl and bash)",
            );
            return None;
        };
        let files = tempfile::Builder::new().prefix("agentd-it-").tempdir().unwrap();
        fs::write(files.path().join("resolv.conf"), format!("nameserver {RESOLVER}\n")).unwrap();
        inside.sh(format!(
            "mount --make-rprivate /; mount --bind {}/resolv.conf /etc/resolv.conf
             ip link set lo up; ip addr add {OWN}/30 dev lo; ip addr add {SECOND}/30 dev lo
             ip link add out type veth peer name in netns {}
             ip addr add {INSIDE_END}/24 dev out; ip link set out up",
            files.path().display(),
            outside.thread,
        ));
        let lo: String = [ALLOWED, OTHER, PRIVATE, RESOLVER]
            .map(|address| format!("ip addr add {address}/32 dev lo\n"))
            .concat();
        outside.sh(format!(
            "ip link set lo up\n{lo}ip addr add {OUTSIDE_END}/24 dev in; ip link set in up"
        ));
        inside.sh(format!("ip route add default via {OUTSIDE_END}"));
        let seen = Arc::new(Mutex::new(Seen::default()));
        let shared = seen.clone();
        outside.run(move || resolver(names, shared));
        for place in [&inside, &outside] {
            let shared = seen.clone();
            place.run(move || web(shared));
            place.run(echo);
        }
        let tls = tls(&outside, &files);
        Some(Self { inside, seen, tls, _files: files })
    }

    /// Does something where the daemon is, in a thread that is in there.
    pub(crate) fn inside<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.inside.run(job)
    }

    pub(crate) fn seen(&self) -> std::sync::MutexGuard<'_, Seen> {
        self.seen.lock().unwrap()
    }
}

impl Drop for Internet {
    fn drop(&mut self) {
        let _ = self.tls.kill();
        let _ = self.tls.wait();
    }
}

/// Plain HTTP on port 80 of every address: says where it is and what was asked.
fn web(seen: Arc<Mutex<Seen>>) {
    let listener = TcpListener::bind("0.0.0.0:80").unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let (client, seen) = (client.unwrap(), seen.clone());
            thread::spawn(move || drop(serve(client, &seen)));
        }
    });
}

fn serve(mut client: TcpStream, seen: &Mutex<Seen>) -> std::io::Result<()> {
    let address = client.local_addr()?.ip();
    let mut reader = BufReader::new(client.try_clone()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line)? == 0 {
            return Ok(());
        }
        if line.trim().is_empty() {
            break;
        }
        lines.push(line.trim().to_owned());
    }
    let length = |line: &String| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok();
    let mut body = vec![0; lines.iter().find_map(length).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let wants = |line: &&String| line.to_lowercase().starts_with("host:");
    let host = lines.iter().find(wants).cloned().unwrap_or_default();
    let first = lines.first().cloned().unwrap_or_default();
    seen.lock().unwrap().requests.push(format!("{address} {first} {host}"));
    let body = match first.split(' ').nth(1) {
        Some("/large") => "x".repeat(1 << 20),
        _ => format!("here is {address}\n"),
    };
    write!(
        client,
        "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// Port 9000 of every address gives back what it gets.
fn echo() {
    let listener = TcpListener::bind("0.0.0.0:9000").unwrap();
    thread::spawn(move || {
        for client in listener.incoming() {
            let mut client = client.unwrap();
            let mut back = client.try_clone().unwrap();
            thread::spawn(move || std::io::copy(&mut client, &mut back));
        }
    });
}

/// TLS on port 443 of every address of the outside, by a server that nobody here wrote.
fn tls(outside: &Place, files: &TempDir) -> Child {
    let directory = files.path().to_owned();
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", "key", "-out", "cert"])
        .args(["-subj", "/CN=allowed.example.com", "-days", "2"])
        .current_dir(&directory)
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    outside.run(move || {
        let child = Command::new("openssl")
            .args(["s_server", "-accept", "443", "-key", "key", "-cert", "cert", "-www"])
            .current_dir(&directory)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let is_up = (0..1000).any(|_| {
            thread::sleep(Duration::from_millis(10));
            TcpStream::connect((ALLOWED, 443)).is_ok()
        });
        assert!(is_up, "the TLS server does not come up");
        child
    })
}

/// Answers questions for A records; every other kind there is none of.
fn resolver(names: Names, seen: Arc<Mutex<Seen>>) {
    let socket = UdpSocket::bind((RESOLVER, 53)).unwrap();
    thread::spawn(move || {
        let mut asked: BTreeMap<String, usize> = BTreeMap::new();
        let mut question = [0; 512];
        while let Ok((length, client)) = socket.recv_from(&mut question) {
            let question = &question[..length];
            // Less than a head, the root, and a kind: no question.
            if length < 17 {
                continue;
            }
            let (name, end) = name(question);
            let kind = u16::from_be_bytes([question[end], question[end + 1]]);
            seen.lock().unwrap().names.push(name.clone());
            let addresses = match (kind, names.get(name.as_str())) {
                (1, Some(answers)) => {
                    let count = asked.entry(name).or_default();
                    *count += 1;
                    answers[(*count - 1).min(answers.len() - 1)].clone()
                }
                _ => Vec::new(),
            };
            let mut answer = question[..end + 4].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[6..12].copy_from_slice(&[0, addresses.len() as u8, 0, 0, 0, 0]);
            for address in addresses {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
                answer.extend(address.octets());
            }
            let _ = socket.send_to(&answer, client);
        }
    });
}

/// The name that is asked for, and where it ends.
fn name(question: &[u8]) -> (String, usize) {
    let (mut labels, mut place) = (Vec::new(), 12);
    while question[place] != 0 {
        let end = place + 1 + usize::from(question[place]);
        labels.push(String::from_utf8_lossy(&question[place + 1..end]).to_lowercase());
        place = end;
    }
    (labels.join("."), place + 1)
}
