//! The command line.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand};

use super::settings::{self, Settings};

/// Who is online, right and on time: a presence service on Redis and SQL.
#[derive(Debug, Parser)]
#[command(name = "presenced", version, max_term_width = 100)]
pub struct Cli {
    /// What to do; `serve` where nothing is said.
    #[command(subcommand)]
    pub command: Option<Command>,

    /// Settings, which every command takes.
    #[command(flatten)]
    pub settings: Settings,
}

impl Cli {
    /// Reads the command line and the environment, and the files of secrets. Prints what is wrong, or the help, and ends the
    /// process where there is nothing to run.
    pub fn read() -> Self {
        settings::read(std::env::args_os()).unwrap_or_else(|error| error.exit())
    }

    /// The exit code of a command that could not do its work: the doctor's 1 says that it did, and found something.
    pub const fn trouble(&self) -> u8 {
        if matches!(self.command, Some(Command::Doctor(_))) { 2 } else { 1 }
    }
}

/// What the binary does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the service (the default)
    Serve,
    /// One sweep and one reconcile pass by hand: takes offline whose time has passed, and says what it found and did
    CheckOfflineUsers,
    /// Compare Redis, deadlines, stream and SQL, and print each disagreement with its cause and what to do. Safe beside
    /// running instances. Exit code 0: they agree; 1: they disagree; 2: it could not look
    Doctor(Doctor),
    /// Add an account
    CreateUser(CreateUser),
    /// Set a new password for an account, such as a lost one of 'admin', and end the account's sessions. Safe beside running
    /// instances
    ResetPassword(ResetPassword),
    /// Bring in the accounts of an existing product with their password hashes, as Django stores them: all or, where a row
    /// is refused, none. Exit code 0: all are in; 1: nothing was imported, and each refused row is named
    ImportUsers(ImportUsers),
    /// Bring the database's schema up to date, and name the accounts that share a login name
    Migrate,
}

/// How to examine.
#[derive(Debug, Args)]
pub struct Doctor {
    /// Mend what can be mended, say what was, and look again: exit code 0 where all is well then
    #[arg(long)]
    pub repair: bool,
}

/// The account to add.
#[derive(Debug, Args)]
pub struct CreateUser {
    /// Its name
    #[arg(long)]
    pub username: String,
    /// Its e-mail address
    #[arg(long)]
    pub email: String,
    /// user or admin
    #[arg(long, default_value = "user")]
    pub role: String,
    /// active, pending, inactive, suspended or banned
    #[arg(long, default_value = "active")]
    pub status: String,
    /// Read the password from standard input, one line; without it one is made and printed
    #[arg(long)]
    pub password_stdin: bool,
}

/// The account whose password is to be set.
#[derive(Debug, Args)]
pub struct ResetPassword {
    /// Its name or e-mail address
    #[arg(long)]
    pub username: String,
    /// Read the password from standard input, one line; without it one is made and printed
    #[arg(long)]
    pub password_stdin: bool,
}

/// The accounts to bring in.
#[derive(Debug, Args)]
pub struct ImportUsers {
    /// A .csv file whose first line names the columns, or a .json file: a list of objects, or what Django's `manage.py
    /// dumpdata auth.user` writes. Columns: username, email, password (the hash; empty: none yet), and where wanted id (is
    /// kept), role, `is_staff`, `is_superuser` (either makes an admin), status, `is_active`, `date_joined`
    pub file: PathBuf,
    /// Look at everything and import nothing
    #[arg(long)]
    pub dry_run: bool,
}
