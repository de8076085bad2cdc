//! The one place that builds and wires: settings in, a running service out.

mod backing;
mod cli;
mod commands;
mod doctor;
mod exposure;
mod farewell;
mod import;
pub mod log;
mod serve;
mod settings;

use std::process::ExitCode;

pub use crate::model::Escaped;
pub use cli::{Cli, Command};
pub use settings::{Secret, Settings};

/// Runs what the command line asks for; the exit code says how it went where there is more to say than done.
///
/// # Errors
/// Whatever keeps it from being done, with what to do about it.
pub async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    cli.settings.check()?;
    match cli.command.unwrap_or(Command::Serve) {
        Command::Serve => Box::pin(serve::serve(&cli.settings)).await,
        Command::CheckOfflineUsers => Box::pin(commands::check_offline_users(&cli.settings)).await,
        Command::Doctor(how) => return Box::pin(doctor::doctor(&cli.settings, &how)).await,
        Command::CreateUser(user) => commands::create_user(&cli.settings, user).await,
        Command::ImportUsers(how) => return import::import_users(&cli.settings, how).await,
        Command::Migrate => commands::migrate(&cli.settings).await,
    }
    .map(|()| ExitCode::SUCCESS)
}
