//! Whose tokens are taken, and how long those minted here are good.

use std::time::Duration;

use clap::Args;

use super::issuers::IssuerFlags;
use super::{Secret, parse};
use crate::identity;

/// The shortest HS256 secret that is taken, in bytes: the length of the hash (RFC 7518, section 3.2).
pub const SECRET_BYTES: usize = 32;

/// The settings of tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tokens")]
pub struct TokenSettings {
    /// HS256 secret that signs tokens, 32 bytes or more [default: generated once into the data folder]
    #[arg(long, env = "PRESENCE_JWT_SECRET", global = true, value_name = "SECRET", hide_env_values = true, value_parser = parse::secret)]
    pub jwt_secret: Option<Secret>,

    /// Further HS256 secrets whose tokens are taken, comma-separated
    #[arg(long, env = "PRESENCE_TRUSTED_SECRETS", global = true, value_name = "SECRETS", hide_env_values = true, value_delimiter = ',', value_parser = parse::secret)]
    pub trusted_secrets: Vec<Secret>,

    /// Lifetime of an access token (1s to 1d)
    #[arg(long, env = "PRESENCE_ACCESS_TTL", default_value = "15m", global = true, value_name = "TIME", value_parser = parse::access_ttl)]
    pub access_ttl: Duration,

    /// Lifetime of a refresh token (1s to 365d)
    #[arg(long, env = "PRESENCE_REFRESH_TTL", default_value = "7d", global = true, value_name = "TIME", value_parser = parse::refresh_ttl)]
    pub refresh_ttl: Duration,

    /// For how long after its first use a refresh token may be used again: two tabs, not theft (0 to 5m)
    #[arg(long, env = "PRESENCE_REFRESH_GRACE", default_value = "10s", global = true, value_name = "TIME", value_parser = parse::grace)]
    pub refresh_grace: Duration,

    /// Who else's are.
    #[command(flatten)]
    pub issuers: IssuerFlags,
}

impl TokenSettings {
    /// Looks at what a flag's parser must not: the values that a refusal would print.
    pub(super) fn check(&self) -> anyhow::Result<()> {
        let long_enough = |secret: &Secret| secret.reveal().len() >= SECRET_BYTES;
        anyhow::ensure!(
            self.jwt_secret.as_ref().is_none_or(long_enough),
            "PRESENCE_JWT_SECRET (--jwt-secret) must be {SECRET_BYTES} bytes or more; make one with: openssl rand -hex 32"
        );
        anyhow::ensure!(
            self.trusted_secrets.iter().all(|secret| secret.reveal().is_empty() || long_enough(secret)),
            "each of PRESENCE_TRUSTED_SECRETS (--trusted-secrets) must be {SECRET_BYTES} bytes or more, separated by commas (so none can hold one)"
        );
        self.issuers.read().map(drop)
    }

    /// What identity needs of them, with the secret that signs.
    pub(in crate::app) fn identity(&self, secret: &Secret) -> anyhow::Result<identity::Settings> {
        Ok(identity::Settings {
            access_ttl: self.access_ttl,
            refresh_ttl: self.refresh_ttl,
            refresh_grace: self.refresh_grace,
            sessions: identity::SessionPolicy::default(),
            secret: secret.reveal().to_string(),
            trusted_secrets: self.trusted_secrets.iter().map(|secret| secret.reveal().to_string()).collect(),
            issuers: self.issuers.read()?,
        })
    }
}
