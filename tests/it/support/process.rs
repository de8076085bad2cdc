//! The real `presenced` binary, as a process of its own.

use std::{path::PathBuf, time::Duration};

use tempfile::TempDir;

use super::{
    poll::eventually,
    tether::{self, Start, Tether},
};

/// The binary itself takes well under a second; the rest is for a machine that is busy with something else.
const STARTS_WITHIN: Duration = Duration::from_secs(30);

/// SIGTERM ends the service within 10 s; what is above is the measuring.
const ENDS_WITHIN: Duration = Duration::from_secs(15);

/// What to start; what is left out is the service's own default.
#[derive(Clone, Debug, Default)]
pub struct PresencedOptions {
    pub database_url: Option<String>,
    pub redis_url: Option<String>,
    pub ttl: Option<Duration>,
    /// The data folder, where several starts share one; by default each start has its own, removed in the end.
    pub data: Option<PathBuf>,
    /// Further variables. They come last and win.
    pub env: Vec<(String, String)>,
    pub arguments: Vec<String>,
    /// Another program than the binary of this build (or than the variable `PRESENCE_TEST_PROGRAM` says).
    pub program: Option<PathBuf>,
}

/// A running service. Ends with the value, and with the test process however that ends.
#[derive(Debug)]
pub struct Presenced {
    // Before the folder: fields drop in order, and the service must be gone before its data is.
    tether: Tether,
    _folder: TempDir,
    data: PathBuf,
    base_url: String,
}

impl Presenced {
    /// Starts the service on a free port and returns when it has said its address.
    pub async fn start(options: PresencedOptions) -> Self {
        match Self::try_start(options).await {
            Ok(service) => service,
            Err((code, output)) => panic!("presenced ended with code {code}:\n{output}"),
        }
    }

    /// [`start`](Self::start) for a service that may refuse to: `Err` with its exit code and output.
    pub async fn try_start(options: PresencedOptions) -> Result<Self, (i32, String)> {
        let folder = tether::folder("service");
        let data = options.data.clone().unwrap_or_else(|| folder.path().join("data"));
        let program = options.program.clone().unwrap_or_else(|| {
            let chosen = std::env::var_os("PRESENCE_TEST_PROGRAM").filter(|path| !path.is_empty());
            chosen.map_or_else(|| env!("CARGO_BIN_EXE_presenced").into(), PathBuf::from)
        });
        let program = program.into_os_string().into_string().expect("a plain path");
        let command: Vec<String> = std::iter::once(program).chain(options.arguments.clone()).collect();
        let env = options.environment(&data);
        let tether = Tether::start(&Start {
            folder: folder.path(),
            signal: "KILL",
            user: None,
            env: &env,
            command: &command,
        });
        let address = eventually(STARTS_WITHIN, async || {
            let address = line(&tether.read("stdout"), "address: ");
            match (address, tether.exit_code()) {
                (Some(address), _) => Ok(Ok(address)),
                (None, Some(code)) => Ok(Err((code, tether.output()))),
                (None, None) => Err(tether.output()),
            }
        })
        .await;
        Ok(Self { base_url: address?, tether, _folder: folder, data })
    }

    /// `http://127.0.0.1:<port>`
    pub fn base_url(&self) -> &str {
        &self.base_url
    }

    /// The data folder.
    pub fn data(&self) -> &std::path::Path {
        &self.data
    }

    pub fn pid(&self) -> u32 {
        self.tether.pid()
    }

    /// What follows `name` in a line of standard output: `printed("admin password: ")`.
    pub fn printed(&self, name: &str) -> Option<String> {
        line(&self.stdout(), name)
    }

    /// The socket of the embedded Redis, as the start prints it for a shell.
    pub fn redis_socket(&self) -> PathBuf {
        let line = self.printed("look into Redis: redis-cli -s ").expect("the start prints the socket");
        let word = line.strip_suffix(" HGETALL 'presence:{0}:user:1'").expect("an example of what to ask");
        let quoted = word.strip_prefix('\'').and_then(|word| word.strip_suffix('\''));
        quoted.map_or_else(|| word.to_owned(), |quoted| quoted.replace(r"'\''", "'")).into()
    }

    /// Runs redis-cli on the embedded Redis and returns what it prints.
    pub fn redis_cli(&self, words: &[&str]) -> String {
        let mut command = std::process::Command::new("redis-cli");
        let output = command.arg("-s").arg(self.redis_socket()).args(words).output();
        let output = output.expect("redis-cli is installed: scripts/install test");
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    pub fn stdout(&self) -> String {
        self.tether.read("stdout")
    }

    /// The log so far.
    pub fn stderr(&self) -> String {
        self.tether.read("stderr")
    }

    /// SIGTERM; waits for the end and returns the exit code.
    pub async fn terminate(&self) -> i32 {
        self.tether.signal("TERM");
        self.ended().await
    }

    /// Waits for the end, whatever brings it about, and returns the exit code.
    pub async fn ended(&self) -> i32 {
        self.tether.ended(ENDS_WITHIN).await
    }

    /// `kill -9`, and waits until the process is gone. What it leaves behind (a child of its own) stays.
    pub async fn kill9(&self) {
        self.tether.signal("KILL");
        self.ended().await;
    }

    /// Stops the service in its tracks: connections stay open and nobody answers.
    pub fn pause(&self) {
        self.tether.signal("STOP");
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.tether.signal("CONT");
    }

    /// Sends any other signal, by its name.
    pub fn signal(&self, name: &str) {
        self.tether.signal(name);
    }
}

impl Drop for Presenced {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("presenced {} said:\n{}", self.pid(), self.tether.output());
        }
    }
}

impl PresencedOptions {
    fn environment(&self, data: &std::path::Path) -> Vec<(String, String)> {
        let ttl = self.ttl.map(|ttl| format!("{}ms", ttl.as_millis()));
        let own = [
            ("PRESENCE_LISTEN", Some("127.0.0.1:0".to_owned())),
            ("PRESENCE_DATA_DIR", Some(data.to_string_lossy().into_owned())),
            ("PRESENCE_TTL", ttl),
            ("DATABASE_URL", self.database_url.clone()),
            ("REDIS_URL", self.redis_url.clone()),
            // A test is one address, and logs in as often as it likes.
            ("PRESENCE_RATE_LIMITS", Some("off".to_owned())),
        ];
        let set = own.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
        set.chain(self.env.iter().cloned()).collect()
    }
}

/// The rest of the first whole line of `text` that begins with `name`.
fn line(text: &str, name: &str) -> Option<String> {
    let whole = text.rsplit_once('\n').map_or("", |(lines, _)| lines);
    whole.lines().find_map(|line| line.strip_prefix(name)).map(|rest| rest.trim().to_owned())
}

#[test]
fn a_line_counts_once_it_is_whole() {
    assert_eq!(line("hello\naddress: http://127.0.0.1:80", "address: "), None);
    assert_eq!(line("hello\naddress: http://127.0.0.1:80\n", "address: ").unwrap(), "http://127.0.0.1:80");
}
