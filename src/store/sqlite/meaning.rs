//! What SQLite's errors mean to a caller.

use crate::store::lease::{Dialect, Meaning};

impl Dialect for sqlx::Sqlite {
    fn meaning(error: &dyn sqlx::error::DatabaseError) -> Meaning {
        // The low byte of an extended code is the code itself.
        let code = error.code().and_then(|code| code.parse::<u32>().ok()).unwrap_or_default() & 0xff;
        match code {
            // BUSY, LOCKED, READONLY, IOERR, FULL, CANTOPEN, PROTOCOL.
            5 | 6 | 8 | 10 | 13 | 14 | 15 => Meaning::Unavailable,
            _ if error.message().contains("users_username_key") => Meaning::Taken("username"),
            // Which name it is the caller learns (`names::named`).
            _ if error.message().contains("login_names.name_key") => Meaning::Taken("username"),
            // A schema that is not there yet.
            _ if error.message().starts_with("no such table") => Meaning::Unavailable,
            _ if error.message().contains("users_email_key") => Meaning::Taken("email"),
            _ => Meaning::Refused,
        }
    }
}
