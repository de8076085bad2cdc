//! A server that a former process has left behind on the same data: it is ended before the next one starts, because two
//! servers would write one append-only file.
//!
//! The server holds a lock on a file for as long as its process lives (its standard output is that file, and a lock goes with
//! the open file to children). So the kernel says whether one still runs, even one that hangs or has lost its socket.

use std::fs::{File, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use super::client::{self, Answer};
use super::place::{self, Home};
use super::{LiveError, PATIENCE, Result};

/// The file whose lock a running server holds.
const LOCK_FILE: &str = "lock";
/// Where a running server keeps its process id, for an operator.
pub(super) const PID_FILE: &str = "redis.pid";
/// Where versions before this one kept the TCP port that their server listened on.
const PORT_FILE: &str = "port";
/// Between two attempts to end a server.
const PAUSE: Duration = Duration::from_millis(20);

/// Ends a server that still runs on these data, of this version or of the one before. Returns the lock, for the next server
/// to hold.
///
/// # Errors
/// [`LiveError::Embedded`] where one does not end, with how to end it.
pub(super) async fn end(home: &Home) -> Result<File> {
    end_on_port(home).await?;
    let path = home.folder().join(LOCK_FILE);
    let lock = File::options().write(true).create(true).truncate(false).mode(0o600).open(&path);
    let lock = lock.map_err(|error| refused("open", &path, &error))?;
    let start = Instant::now();
    loop {
        let is_free = match lock.try_lock() {
            Ok(()) => true,
            Err(TryLockError::WouldBlock) => false,
            Err(TryLockError::Error(error)) => return Err(refused("lock", &path, &error)),
        };
        // The lock alone would do, were its file never deleted under a server that runs.
        let mut runs = false;
        for socket in place::candidates(home) {
            if client::keeps_data_in(&socket, home).await {
                runs = true;
                let _ = client::ask(&socket, "SHUTDOWN").await;
            }
        }
        if is_free && !runs {
            return Ok(lock);
        }
        if start.elapsed() > PATIENCE {
            return Err(does_not_end(home));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

fn refused(action: &str, path: &Path, error: &std::io::Error) -> LiveError {
    LiveError::Embedded(format!(
        "cannot {action} {}: {error}; set PRESENCE_DATA_DIR to a folder that can be written",
        path.display()
    ))
}

fn does_not_end(home: &Home) -> LiveError {
    let pid = std::fs::read_to_string(home.folder().join(PID_FILE)).unwrap_or_default();
    let pid: u32 = pid.trim().parse().unwrap_or_default();
    let how = if pid == 0 { String::new() } else { format!(" (kill {pid})") };
    LiveError::Embedded(format!(
        "a redis-server of a former start still runs on {} and does not end: end it by hand{how}, then start presenced again",
        home.folder().display()
    ))
}

/// Why a command does not find the server of the service that runs on the folder, and what to do.
pub(super) fn not_found(home: &Home) -> LiveError {
    let folder = home.folder().display();
    LiveError::Embedded(if home.folder().join(PORT_FILE).exists() {
        format!(
            "the presenced that uses the folder {folder} is of an earlier version, whose redis-server listens on a port: start it \
             again with this version, then run this command again"
        )
    } else {
        format!(
            "a presenced uses the folder {folder}, but its redis-server does not answer: see redis.log in that folder. Where the \
             service runs in a container or with a folder for temporary files of its own (PrivateTmp), run this command there"
        )
    })
}

/// Ends a server of an earlier version, which listened on a TCP port, and forgets the port. Leaves a stranger on that port
/// alone.
async fn end_on_port(home: &Home) -> Result<()> {
    let note = home.folder().join(PORT_FILE);
    let Ok(text) = std::fs::read_to_string(&note) else { return Ok(()) };
    if let Ok(port) = text.trim().parse::<u16>() {
        let start = Instant::now();
        loop {
            match client::ask_port(port, "CONFIG GET dir").await {
                Answer::Text(answer) if client::is_folder(&answer, home) => {
                    let _ = client::ask_port(port, "SHUTDOWN").await;
                }
                Answer::Absent | Answer::Text(_) => break,
                Answer::Silent => {}
            }
            if start.elapsed() > PATIENCE {
                return Err(LiveError::Embedded(format!(
                    "a process listens on port {port} of 127.0.0.1, where the redis-server of an earlier version listened, and \
                     neither answers nor ends: if it is that server, end it by hand (redis-cli -p {port} SHUTDOWN); \
                     otherwise delete {}",
                    note.display()
                )));
            }
            tokio::time::sleep(PAUSE).await;
        }
    }
    std::fs::remove_file(&note).map_err(|error| refused("delete", &note, &error))
}
