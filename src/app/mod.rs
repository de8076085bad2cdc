//! The one place that builds and wires: settings in, a running service out.

mod backing;
mod cli;
mod commands;
mod data_folder;
mod doctor;
mod exposure;
mod farewell;
mod first_admin;
mod import;
pub mod log;
mod serve;
mod settings;

use std::process::ExitCode;

pub use crate::model::Escaped;
pub use cli::{Cli, Command};
pub use settings::{Secret, Settings};

use crate::files;

/// Makes sure that no file of this process and its children is open to other users. For the beginning of `main`, before
/// there is another thread.
pub fn keep_files_private() {
    files::restrict_umask();
}

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
        Command::ResetPassword(account) => commands::reset_password(&cli.settings, account).await,
        Command::ImportUsers(how) => return import::import_users(&cli.settings, how).await,
        Command::Migrate => commands::migrate(&cli.settings).await,
    }
    .map(|()| ExitCode::SUCCESS)
}
