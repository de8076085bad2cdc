//! Child processes that end with their test, however the test ends: by a return, a panic, or `kill -9`.
//!
//! A destructor does not run under `kill -9`, so each server runs below a small shell, the *keeper*, whose standard
//! input is a pipe that only the test holds. When the pipe closes, the keeper ends the server. It is in a process
//! group of its own, so that neither Ctrl-C nor a test runner that kills the group of a hung test takes it along
//! before it has done its work.

use std::{
    fs,
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdin, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use super::poll::eventually;

/// The keeper. Arguments: the folder for output and exit code, the signal that ends the server, the command.
///
/// It says the server's process id as its only line of output. On a line of input it ends the server; on the end of
/// input without one (the test died) it removes the folder as well, as nobody else is left to do it. `exit` is written
/// before the keeper may signal, because an id that was waited for can belong to somebody else by then. A stopped
/// process keeps a signal for later, hence the CONT. The last line ends whatever the server has left in its group.
/// The death of a test whose server is stopped makes the system send HUP to the keeper's group: it must outlive that,
/// and needs no helper that would not, such as `cat`.
/// A test that dies before the server has begun: the write to the closed pipe ends it before it does.
const KEEPER: &str = r#"
folder=$1 signal=$2; shift 2
exec 3<&0 4>&1 1>/dev/null
trap : HUP
(
    trap : HUP
    sh -c 'echo $$ >"$0/pid"; echo $$ >&4; exec "$@" 3<&- 4>&-' "$folder" "$@" </dev/null >"$folder/stdout" 2>"$folder/stderr"
    echo $? >"$folder/exit.new" && mv "$folder/exit.new" "$folder/exit"
) 2>/dev/null &
exec 4>&-
ordered=
read -r ordered <&3
if ! [ -e "$folder/exit" ] && read -r pid <"$folder/pid"; then
    kill -s "$signal" "$pid"; kill -s CONT "$pid"
fi 2>/dev/null
wait
[ -n "$ordered" ] || rm -rf "$folder"
kill -s KILL 0
"#;

/// The watcher: holds the keeper's pipe for as long as the process it watches lives. It looks once a second, because
/// no portable way waits for a process that is no child.
const WATCHER: &str = r#"while kill -s 0 "$1" 2>/dev/null; do sleep 1; done"#;

/// Who a server runs as, where that is not who runs the test.
#[derive(Clone, Copy, Debug)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
}

/// A running server with its keeper. Dropping it ends the server and waits for that.
#[derive(Debug)]
pub struct Tether {
    keeper: Child,
    /// `None` once the server's life is somebody else's affair.
    rope: Option<ChildStdin>,
    pid: u32,
    folder: PathBuf,
}

/// How to start a server under a keeper.
#[derive(Debug)]
pub struct Start<'a> {
    /// Takes the files `stdout`, `stderr`, `pid` and `exit`; is the server's working directory. Must belong to `user`.
    pub folder: &'a Path,
    /// The signal that ends this kind of server for good: `KILL`, or something kinder.
    pub signal: &'a str,
    pub user: Option<User>,
    pub env: &'a [(String, String)],
    /// The program and its arguments.
    pub command: &'a [String],
}

impl Tether {
    /// Starts the server and returns as soon as it has a process id, which is long before it serves.
    pub fn start(start: &Start<'_>) -> Self {
        for name in ["pid", "exit"] {
            // Left by the life before, if there was one.
            let _ = fs::remove_file(start.folder.join(name));
        }
        let mut command = Command::new("sh");
        command
            .args(["-c", KEEPER, "keeper"])
            .arg(start.folder)
            .arg(start.signal)
            .args(start.command)
            .envs(start.env.iter().map(|(name, value)| (name, value)))
            .current_dir(start.folder)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        // What a developer has set for a service of their own is not for the tests.
        for (name, _) in std::env::vars().filter(|(name, _)| is_setting(name)) {
            if !start.env.iter().any(|(given, _)| *given == name) {
                command.env_remove(name);
            }
        }
        if let Some(user) = start.user {
            command.uid(user.uid).gid(user.gid);
        }
        let mut keeper = command.spawn().expect("sh starts");
        let mut line = String::new();
        let said = BufReader::new(keeper.stdout.take().expect("piped")).read_line(&mut line);
        let pid = line.trim().parse();
        let (Ok(_), Ok(pid)) = (said, pid) else {
            panic!("no process id from the keeper of {:?}", start.command)
        };
        let rope = keeper.stdin.take();
        Self { keeper, rope, pid, folder: start.folder.to_owned() }
    }

    /// The server's own process id, not the keeper's.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Sends the signal of this name (`TERM`, `STOP`, …) to the server, if it still runs.
    pub fn signal(&self, name: &str) {
        if self.exit_code().is_none() {
            signal(self.pid, name);
        }
    }

    /// The exit code, 128 + n after signal n; `None` while the server runs.
    pub fn exit_code(&self) -> Option<i32> {
        fs::read_to_string(self.folder.join("exit")).ok()?.trim().parse().ok()
    }

    /// Waits until the server has ended and returns its exit code.
    pub async fn ended(&self, bound: Duration) -> i32 {
        eventually(bound, async || self.exit_code().ok_or_else(|| self.output())).await
    }

    /// What the server has said so far, for the message of a failure.
    pub fn output(&self) -> String {
        format!("--- stdout\n{}--- stderr\n{}", self.read("stdout"), self.read("stderr"))
    }

    /// `stdout` or `stderr` so far.
    pub fn read(&self, name: &str) -> String {
        let bytes = fs::read(self.folder.join(name)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Ties the server to the life of another process instead of this one. Its folder goes with it.
    #[expect(clippy::zombie_processes, reason = "the watcher outlives this process by design")]
    pub fn hand_over_to(mut self, process: u32) {
        let rope = self.rope.take().expect("handed over once");
        Command::new("sh")
            .args(["-c", WATCHER, "watcher", &process.to_string()])
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(Stdio::from(rope))
            .stderr(Stdio::null())
            .spawn()
            .expect("sh starts");
    }
}

impl Drop for Tether {
    fn drop(&mut self) {
        if let Some(mut rope) = self.rope.take() {
            // An error means that the keeper is gone already, and the server with it.
            let _ = rope.write_all(b"end\n");
            let _ = self.keeper.wait();
        }
    }
}

/// Whether this variable is a setting of the service.
fn is_setting(name: &str) -> bool {
    name.starts_with("PRESENCE_") || matches!(name, "DATABASE_URL" | "REDIS_URL")
}

/// Sends a signal by its name to a process. Through the shell, whose `kill` is built in: a slim system has no other.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("sh")
        .args(["-c", r#"kill -s "$1" "$2" 2>/dev/null"#, "signal", name, &pid.to_string()])
        .status()
        .expect("sh starts");
}

/// Whether a process of this id runs. One that has ended and was not waited for yet does not.
pub fn is_alive(pid: u32) -> bool {
    let output =
        Command::new("ps").args(["-o", "stat=", "-p", &pid.to_string()]).output().expect("ps is installed");
    let state = String::from_utf8_lossy(&output.stdout);
    !state.trim().is_empty() && !state.trim().starts_with('Z')
}

/// A folder of its own for a server, removed with the value.
pub fn folder(name: &str) -> tempfile::TempDir {
    tempfile::Builder::new().prefix(&format!("presenced-{name}-")).tempdir().expect("a temporary folder")
}

/// A loopback port nobody listens on at this moment; the caller must be ready to find it taken a moment later.
///
/// It lies below what systems hand to outgoing connections, so that a server which is down for a moment finds its port
/// free when it comes back.
pub fn free_port() -> u16 {
    const FIRST: u16 = 12_000;
    const COUNT: u16 = 18_000;
    static NEXT: AtomicU16 = AtomicU16::new(0);
    // Neighbouring processes begin far apart.
    let start = u16::try_from(u64::from(std::process::id()) * 7919 % u64::from(COUNT)).expect("below COUNT");
    loop {
        let step = NEXT.fetch_add(1, Ordering::Relaxed);
        let port = FIRST + (start + step % COUNT) % COUNT;
        if std::net::TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}
