//! A wrong clock for one program: a small library that shifts what the C library says of the time of day, loaded before it.
//! Linux only, as is `LD_PRELOAD` in this form.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    process::{Command, Stdio},
};

use tempfile::TempDir;

use super::tether;

/// The three ways by which programs ask the time of day.
const SOURCE: &str = r#"
#define _GNU_SOURCE
#include <stdlib.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>
static long shift(void) { const char *text = getenv("CLOCK_SHIFT"); return text ? atol(text) : 0; }
int clock_gettime(clockid_t clock, struct timespec *t) {
    int failed = syscall(SYS_clock_gettime, clock, t);
    if (!failed && clock == CLOCK_REALTIME) t->tv_sec += shift();
    return failed;
}
int gettimeofday(struct timeval *t, void *zone) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (t) { t->tv_sec = now.tv_sec; t->tv_usec = now.tv_nsec / 1000; }
    return 0;
}
time_t time(time_t *out) {
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (out) *out = now.tv_sec;
    return now.tv_sec;
}
"#;

/// The library. It goes with the value, so that must outlive the programs that are to load it.
#[derive(Debug)]
pub struct WrongClock {
    folder: TempDir,
}

impl WrongClock {
    /// Compiles the library.
    pub fn new() -> Self {
        let folder = tether::folder("clock");
        // A database server may run as another user.
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("a folder of our own");
        let source = folder.path().join("clock.c");
        fs::write(&source, SOURCE).expect("a folder of our own");
        let compiled = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .arg(folder.path().join("clock.so"))
            .arg(&source)
            .stdin(Stdio::null())
            .output()
            .expect("a C compiler named `cc` is needed for a program with a clock of its own: scripts/install test");
        assert!(compiled.status.success(), "cc: {}", String::from_utf8_lossy(&compiled.stderr));
        Self { folder }
    }

    /// The variables that put a program's clock so many seconds ahead, or behind.
    pub fn shifted(&self, seconds: i64) -> Vec<(String, String)> {
        let library = self.folder.path().join("clock.so");
        vec![
            ("LD_PRELOAD".to_owned(), library.to_str().expect("a plain path").to_owned()),
            ("CLOCK_SHIFT".to_owned(), seconds.to_string()),
        ]
    }
}
