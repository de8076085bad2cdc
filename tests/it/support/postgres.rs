//! Real PostgreSQL for the tests, as a private server on a loopback port. Any PostgreSQL on this machine is left alone.
//!
//! [`Postgres::database`] gives each test a database of its own on one server. The test runner starts a process per
//! test, so the server is shared between processes: the first that needs it starts it under a file lock, and it lives
//! as long as the runner does (under plain `cargo test`: as long as the one test process). A run has a folder and a
//! server of its own, so nothing left by a run that was killed can be in the way of the next.
//!
//! [`PrivatePostgres`] is a server for one test that wants to stop, kill and restart it.

use std::{
    ffi::OsString,
    fs::{self, File},
    os::unix::{fs::chown, process::CommandExt, process::parent_id},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    time::Duration,
};

use sqlx::{AssertSqlSafe, Connection, PgConnection};
use tempfile::TempDir;
use tokio::sync::OnceCell;

use super::{
    poll::eventually,
    tether::{self, Start, Tether, User},
};

/// A start with two cores that are busy compiling takes a few seconds.
const STARTS_WITHIN: Duration = Duration::from_mins(1);

/// The one server of this test run.
#[derive(Debug)]
pub struct Postgres;

/// An empty database of one test's own, dropped with the value.
#[derive(Debug)]
pub struct TestDatabase {
    /// `postgres://…`, for any number of connections.
    pub url: String,
    /// The server's maintenance database, and the name of this one.
    drop_by: Option<(String, String)>,
}

/// A PostgreSQL server of one test's own. Ends with the value, and with the test process however that ends.
#[derive(Debug)]
pub struct PrivatePostgres {
    // Before the folder: fields drop in order, and a server must be gone before its data is.
    tether: Option<Tether>,
    folder: TempDir,
    port: u16,
    /// Variables of the server's process.
    env: Vec<(String, String)>,
}

impl Postgres {
    /// A fresh, empty database in the server's locale, C.UTF-8.
    pub async fn database() -> TestDatabase {
        Self::database_with("").await
    }

    /// A fresh, empty database with further options of `CREATE DATABASE`, such as a locale of its own.
    pub async fn database_with(options: &str) -> TestDatabase {
        // One start per process at most: two tasks of one thread must not wait for each other's file lock.
        static PORT: OnceCell<u16> = OnceCell::const_new();
        let port = *PORT.get_or_init(shared_port).await;
        let name = create_database(port, options).await;
        TestDatabase { url: url(port, &name), drop_by: Some((url(port, "postgres"), name)) }
    }
}

impl Drop for TestDatabase {
    fn drop(&mut self) {
        let Some((server, name)) = &self.drop_by else { return };
        // A database is some megabytes on the disk, and a run makes hundreds. A failure harms nothing: the server's
        // folder goes at the end of the run.
        let _ = Command::new(binary("psql"))
            .args([server.as_str(), "-qXc", &format!("DROP DATABASE {name} WITH (FORCE)")])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .status();
    }
}

impl PrivatePostgres {
    /// Starts a server.
    pub async fn start() -> Self {
        Self::start_with(Vec::new()).await
    }

    /// Starts a server whose process has these variables.
    pub async fn start_with(env: Vec<(String, String)>) -> Self {
        let folder = tether::folder("postgres");
        initialise(folder.path());
        let mut server = Self { tether: None, folder, port: 0, env };
        (server.tether, server.port) = launch_anywhere(server.folder.path(), &server.env).await;
        server
    }

    /// A fresh, empty database on this server.
    pub async fn database(&self) -> TestDatabase {
        TestDatabase { url: url(self.port, &create_database(self.port, "").await), drop_by: None }
    }

    /// The server's maintenance database, `postgres`.
    pub fn url(&self) -> String {
        url(self.port, "postgres")
    }

    /// Its port on loopback.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The id of the postmaster.
    pub fn pid(&self) -> u32 {
        self.tether().pid()
    }

    /// Stops the server and every backend of it in their tracks: connections stay open and nobody answers.
    pub fn pause(&self) {
        // The postmaster first, or it might start a backend that nobody has stopped.
        self.tether().signal("STOP");
        self.backends().into_iter().for_each(|pid| tether::signal(pid, "STOP"));
    }

    /// Ends a [`pause`](Self::pause).
    pub fn resume(&self) {
        self.backends().into_iter().for_each(|pid| tether::signal(pid, "CONT"));
        self.tether().signal("CONT");
    }

    /// `kill -9` of the server with all its backends, and waits until it is gone.
    pub async fn kill(&self) {
        let backends = self.backends();
        self.tether().signal("KILL");
        self.tether().ended(STARTS_WITHIN).await;
        for pid in backends {
            tether::signal(pid, "KILL");
            eventually(STARTS_WITHIN, async || if tether::is_alive(pid) { Err(pid) } else { Ok(()) }).await;
        }
    }

    /// Starts the server anew on the same port and data; an immediate shutdown goes before if it still ran.
    pub async fn restart(&mut self) {
        if let Some(tether) = &self.tether
            && tether.exit_code().is_none()
        {
            self.resume();
        }
        self.tether = None;
        match launch(self.folder.path(), self.port, &self.env).await {
            Ok(tether) => self.tether = Some(tether),
            Err(output) => panic!("PostgreSQL does not come back:\n{output}"),
        }
    }

    /// What the server has logged.
    pub fn output(&self) -> String {
        self.tether.as_ref().map(Tether::output).unwrap_or_default()
    }

    fn tether(&self) -> &Tether {
        self.tether.as_ref().expect("a started server")
    }

    /// The postmaster's children.
    fn backends(&self) -> Vec<u32> {
        let output = Command::new("ps").args(["-A", "-o", "pid=,ppid="]).output().expect("ps is installed");
        let table = String::from_utf8_lossy(&output.stdout).into_owned();
        let rows = table.lines().filter_map(|line| {
            let (pid, parent) = line.trim().split_once(char::is_whitespace)?;
            Some((pid.parse().ok()?, parent.trim().parse::<u32>().ok()?))
        });
        rows.filter(|&(_, parent)| parent == self.pid()).map(|(pid, _)| pid).collect()
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        // Backends that are still paused would outlive their postmaster.
        if let Some(tether) = &self.tether
            && tether.exit_code().is_none()
        {
            self.resume();
        }
    }
}

/// The port of the run's server, which this call starts where it is the first that asks.
async fn shared_port() -> u16 {
    // The runner says which run this is and is the parent of each test; without one this process is the run.
    let (run, process) = match std::env::var("NEXTEST_RUN_ID") {
        Ok(run) if !run.is_empty() => (run, parent_id()),
        _ => (format!("process-{}", std::process::id()), std::process::id()),
    };
    let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("postgres");
    fs::create_dir_all(&folder).expect("the target folder is writable");
    let file = folder.join(&run);

    // Waiting for the lock blocks the thread, which is as well: the caller can do nothing before.
    let lock = File::create(folder.join("lock")).expect("the target folder is writable");
    lock.lock().expect("files can be locked");
    if let Some(port) = fs::read_to_string(&file).ok().and_then(|port| port.parse().ok()) {
        return port;
    }
    // Nobody can be in the midst of a start, as it would hold the lock: these are the notes of runs that are over.
    forget_ended_runs(&folder, &run);
    let data = tether::folder("postgres");
    initialise(data.path());
    let (tether, port) = launch_anywhere(data.path(), &[]).await;
    // From here on the keeper sees to the folder, at the end of the run.
    let _ = data.keep();
    tether.expect("a started server").hand_over_to(process);
    fs::write(file, port.to_string()).expect("the target folder is writable");
    port
}

/// Removes the files of other runs that are a day old; younger ones may be of a run that goes on next to this one.
fn forget_ended_runs(folder: &Path, run: &str) {
    const DAY: Duration = Duration::from_hours(24);
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let age =
            entry.metadata().and_then(|data| data.modified()).map(|time| time.elapsed().unwrap_or_default());
        if entry.file_name() != run && entry.file_name() != "lock" && age.is_ok_and(|age| age > DAY) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn url(port: u16, database: &str) -> String {
    format!("postgres://postgres@127.0.0.1:{port}/{database}")
}

async fn create_database(port: u16, options: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let mut server = PgConnection::connect(&url(port, "postgres")).await.expect("the server answers");
    sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {name} {options}")))
        .execute(&mut server)
        .await
        .expect("a new database");
    server.close().await.expect("an orderly end");
    name
}

/// Makes the data of a new server in `folder/data`, and the folder the property of the user the server runs as.
fn initialise(folder: &Path) {
    // Not the C locale: upper and lower case of letters beyond ASCII are a subject of tests.
    let locale = if cfg!(target_os = "macos") { "en_US.UTF-8" } else { "C.UTF-8" };
    let mut command = Command::new(binary("initdb"));
    command
        .args([
            "-U",
            "postgres",
            "-A",
            "trust",
            "-E",
            "UTF8",
            "--no-sync",
            "--lc-messages=C",
            "--locale",
            locale,
            "-D",
        ])
        .arg(folder.join("data"))
        .current_dir(folder)
        .stdin(Stdio::null());
    if let Some(user) = server_user() {
        chown(folder, Some(user.uid), Some(user.gid)).expect("root may give a folder away");
        command.uid(user.uid).gid(user.gid);
    }
    let output = command.output().expect("initdb runs");
    assert!(output.status.success(), "initdb: {}", String::from_utf8_lossy(&output.stderr));
}

/// Starts a server on a free port.
async fn launch_anywhere(folder: &Path, env: &[(String, String)]) -> (Option<Tether>, u16) {
    let mut output = String::new();
    // Between the look for a free port and its use another process may take it. Then the server says so and ends.
    for _ in 0..10 {
        let port = tether::free_port();
        match launch(folder, port, env).await {
            Ok(tether) => return (Some(tether), port),
            Err(said) => output = said,
        }
    }
    panic!("no PostgreSQL after ten ports; the last said:\n{output}");
}

/// Starts a server on this port and waits until it serves; `Err` with its output where it ended instead.
async fn launch(folder: &Path, port: u16, env: &[(String, String)]) -> Result<Tether, String> {
    let data = folder.join("data").into_os_string();
    let port_option = format!("port={port}");
    let options = [
        "listen_addresses=127.0.0.1",
        // Loopback alone: a socket's path would have a length limit, and nobody asks for one.
        "unix_socket_directories=",
        // Nothing here has to survive the machine, but a commit has to survive a kill of the server, or fault tests
        // would see losses that are not the service's: hence no `synchronous_commit=off`.
        "fsync=off",
        "full_page_writes=off",
        "max_connections=300",
        "shared_buffers=32MB",
        "log_min_messages=warning",
        port_option.as_str(),
    ];
    let words = [OsString::from(binary("postgres")), "-D".into(), data];
    let mut command: Vec<String> =
        words.into_iter().map(|word| word.into_string().expect("a plain path")).collect();
    command.extend(options.into_iter().flat_map(|option| ["-c".to_owned(), option.to_owned()]));
    // QUIT is PostgreSQL's immediate shutdown: as fast as a kill, and takes its backends and shared memory along.
    let tether =
        Tether::start(&Start { folder, signal: "QUIT", user: server_user(), env, command: &command });
    eventually(STARTS_WITHIN, async || {
        if tether.exit_code().is_some() {
            return Ok(Err(tether.output()));
        }
        match PgConnection::connect(&url(port, "postgres")).await {
            Ok(connection) => {
                let _ = connection.close().await;
                Ok(Ok(()))
            }
            Err(error) => Err(format!("{error}\n{}", tether.output())),
        }
    })
    .await
    .map(|()| tether)
}

/// PostgreSQL refuses to run as root; then it runs as the user that its package has made.
fn server_user() -> Option<User> {
    let id = |arguments: &[&str]| -> Option<u32> {
        let output =
            Command::new("id").args(arguments).stderr(Stdio::null()).output().expect("id is installed");
        String::from_utf8_lossy(&output.stdout).trim().parse().ok()
    };
    if id(&["-u"]) != Some(0) {
        return None;
    }
    let user = id(&["-u", "postgres"]).zip(id(&["-g", "postgres"]));
    let (uid, gid) =
        user.expect("running as root, PostgreSQL needs the user `postgres`: scripts/install test");
    Some(User { uid, gid })
}

/// The path of one of PostgreSQL's programs, which packages often keep out of `PATH`. `PG_BIN` names the folder to use.
fn binary(name: &str) -> PathBuf {
    let named = std::env::var_os("PG_BIN").map(PathBuf::from).into_iter();
    let on_path: Vec<PathBuf> =
        std::env::var_os("PATH").map(|path| std::env::split_paths(&path).collect()).unwrap_or_default();
    let mut folders = named
        .chain(newest("/usr/lib/postgresql"))
        .chain(on_path)
        .chain(["/opt/homebrew/opt", "/usr/local/opt"].into_iter().flat_map(newest));
    // A folder without the server itself holds the client's programs alone.
    folders
        .find(|folder| folder.join("postgres").is_file() && folder.join("initdb").is_file())
        .unwrap_or_else(|| {
            panic!("PostgreSQL is not installed: scripts/install test, or name its folder in PG_BIN")
        })
        .join(name)
}

/// `<parent>/<version>/bin` and `<parent>/postgresql@<version>/bin`, the newest first.
fn newest(parent: &str) -> Vec<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(parent)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name().into_string().ok()?;
            let version = name.strip_prefix("postgresql@").unwrap_or(&name);
            Some((version.parse().ok()?, entry.path().join("bin")))
        })
        .collect();
    versions.sort_unstable_by(|one, other| other.cmp(one));
    versions.into_iter().map(|(_, folder)| folder).collect()
}
