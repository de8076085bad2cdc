//! The `presenced` binary: reads the command line, sets up the log, and calls [`presenced::app`].

use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use presenced::app::{self, Cli};
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    app::keep_files_private();
    let cli = Cli::parse();
    let trouble = ExitCode::from(cli.trouble());
    let wanted = std::env::var("PRESENCE_LOG").unwrap_or_else(|_| "info,fred=error".to_string());
    let filter = match EnvFilter::try_new(&wanted) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!(
                "presenced: PRESENCE_LOG must be a filter such as info, debug or presenced=debug: {error}"
            );
            return trouble;
        }
    };
    let coloured = std::io::stderr().is_terminal();
    let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    log.with_target(false).with_ansi(coloured).init();
    // One thread needs no scheduler that could share work: no locks, no waking of others.
    let mut builder = match cli.settings.threads() {
        1 => Builder::new_current_thread(),
        threads => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
    };
    let runtime = match builder.enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("presenced: cannot start: {error}");
            return trouble;
        }
    };
    let outcome = runtime.block_on(app::run(cli));
    // All that matters is done; a thread that still waits for something holds nobody up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("presenced: {error:#}");
            trouble
        }
    }
}
