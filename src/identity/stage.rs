//! What identity's own tests stand on: the real thing over a real SQLite of their own.

use std::net::{IpAddr, Ipv4Addr};
use std::ops::Deref;
use std::time::Duration;

use tempfile::TempDir;

use super::{Identity, Limits, Registration, SessionPolicy, Settings, token};
use crate::model::Actor;
use crate::store;

/// Where clients are.
pub const HERE: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// Identity with the database that it stands on.
pub struct Stage {
    identity: Identity,
    _folder: TempDir,
}

impl Deref for Stage {
    type Target = Identity;
    fn deref(&self) -> &Identity {
        &self.identity
    }
}

/// Identity over an empty database that takes an administrator for granted, without grace for refresh tokens.
pub async fn identity() -> Stage {
    identity_with(SessionPolicy::default()).await
}

/// [`identity`] with these bounds for sessions.
pub async fn identity_with(sessions: SessionPolicy) -> Stage {
    let stage = empty_with(sessions).await;
    stage.inner.administrators.note();
    stage
}

/// Identity over an empty database.
pub async fn empty() -> Stage {
    empty_with(SessionPolicy::default()).await
}

async fn empty_with(sessions: SessionPolicy) -> Stage {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let url = format!("sqlite://{}", folder.path().join("identity.db").display());
    let store = store::open(&url, &store::Options::default()).await.expect("a new database");
    store.migrate().await.expect("its schema");
    let settings = Settings {
        access_ttl: Duration::from_mins(15),
        refresh_ttl: Duration::from_hours(1),
        refresh_grace: Duration::ZERO,
        sessions,
        secret: "a secret of more than thirty-two bytes!".into(),
        trusted_secrets: Vec::new(),
        leeway: token::Leeway::NONE,
        issuers: Vec::new(),
    };
    Stage { identity: Identity::new(store, &settings, Limits::off()), _folder: folder }
}

/// An administrator, for the trail.
pub fn admin() -> Actor {
    Actor { user: 1, username: "admin".into(), address: "127.0.0.1".into() }
}

/// `ada`, `ada@example.com`, `ada's password`.
pub fn registration(name: &str) -> Registration {
    Registration {
        username: name.into(),
        email: format!("{name}@example.com"),
        password: format!("{name}'s password"),
    }
}
