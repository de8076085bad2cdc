//! The `presenced` binary: reads the command line, sets up the log, and calls [`presenced::app`].

use std::process::ExitCode;
use std::time::Duration;

use presenced::app::{self, Cli, Escaped};
use tokio::runtime::Builder;

fn main() -> ExitCode {
    app::keep_files_private();
    let cli = Cli::read();
    let trouble = ExitCode::from(cli.trouble());
    if let Err(reason) = app::log::init() {
        eprintln!("presenced: {}", Escaped(reason));
        return trouble;
    }
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
            eprintln!("presenced: cannot start: {}", Escaped(error));
            return trouble;
        }
    };
    let outcome = runtime.block_on(app::run(cli));
    // All that matters is done; a thread that still waits for something holds nobody up.
    runtime.shutdown_timeout(Duration::from_millis(100));
    match outcome {
        Ok(code) => code,
        Err(error) => {
            eprintln!("presenced: {}", Escaped(format!("{error:#}")));
            trouble
        }
    }
}
