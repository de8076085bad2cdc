//! A wall clock of a server's own, which a test can step: a small library (`clock.c`), preloaded into the server.
//!
//! It needs the C compiler that Rust links with. Elsewhere than on Linux nothing is preloaded, and steps change nothing.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use tempfile::TempDir;

/// The clock of one server. Drop it after the server.
#[derive(Debug)]
pub struct ShiftedClock {
    folder: TempDir,
}

impl ShiftedClock {
    /// A clock that is right.
    pub fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let clock = Self { folder: super::tether::folder("clock") };
        // A server may run as another user, who only reads.
        std::fs::set_permissions(clock.folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::write(clock.file(), 0_i64.to_ne_bytes()).unwrap();
        clock
    }

    /// The variables with which the server must be started.
    pub fn env(&self) -> Vec<(String, String)> {
        if !cfg!(target_os = "linux") {
            return Vec::new();
        }
        let text = |path: PathBuf| path.into_os_string().into_string().expect("a plain path");
        vec![("LD_PRELOAD".into(), text(library())), ("CLOCK_SHIFT".into(), text(self.file()))]
    }

    /// From now on the server's clock is so many seconds ahead of the machine's, or behind.
    pub fn set(&self, seconds: i64) {
        use std::os::unix::fs::FileExt;
        let file = std::fs::OpenOptions::new().write(true).open(self.file()).unwrap();
        // In place: the server has the file mapped.
        file.write_all_at(&seconds.to_ne_bytes(), 0).unwrap();
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("seconds")
    }
}

/// The library, compiled once a process.
fn library() -> PathBuf {
    static LIBRARY: OnceLock<PathBuf> = OnceLock::new();
    LIBRARY
        .get_or_init(|| {
            let source = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/it/support/clock.c");
            // Where the user that PostgreSQL runs as can read it, too.
            let folder = std::env::temp_dir();
            let (draft, library) = (
                folder.join(format!("presenced-clock-{}.tmp", std::process::id())),
                folder.join(format!("presenced-clock-{}.so", std::process::id())),
            );
            let compiled =
                Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&draft).arg(source).status();
            assert!(compiled.expect("a C compiler is installed: scripts/install test").success());
            std::fs::rename(&draft, &library).unwrap();
            library
        })
        .clone()
}
