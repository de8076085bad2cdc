//! Whose tokens are taken, and how long those minted here are good.

use std::time::Duration;

use clap::Args;

use super::issuers::IssuerFlags;
use super::{Secret, SecretList, parse};
use crate::identity;
use crate::identity::token::{IssuerSettings, Leeway};

/// The shortest HS256 secret that is taken, in bytes: the length of the hash (RFC 7518, section 3.2).
pub const SECRET_BYTES: usize = 32;

/// The settings of tokens.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tokens")]
pub struct TokenSettings {
    /// Secret that signs tokens (HS256), 32 bytes or more [default: generated once into the data folder]
    #[arg(long, env = "PRESENCE_JWT_SECRET", global = true, value_name = "SECRET", hide_env_values = true, value_parser = parse::secret)]
    pub jwt_secret: Option<Secret>,

    /// Further secrets whose tokens (HS256, HS384, HS512; with the claims of this service) are taken, apart by commas or lines
    #[arg(long, env = "PRESENCE_TRUSTED_SECRETS", global = true, value_name = "SECRETS", hide_env_values = true, value_parser = parse::secrets)]
    pub trusted_secrets: Option<SecretList>,

    /// By how much the clock of another service that makes tokens may be ahead: a token is taken so much before its `nbf` (0 to 5m)
    #[arg(long, env = "PRESENCE_TOKEN_LEEWAY", default_value = "5s", global = true, value_name = "TIME", value_parser = parse::grace)]
    pub token_leeway: Duration,

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
        if let Some(secret) = &self.jwt_secret {
            anyhow::ensure!(
                is_long_enough(secret),
                "{} must be {SECRET_BYTES} bytes or more; make one with: openssl rand -hex 32",
                secret.named("PRESENCE_JWT_SECRET (--jwt-secret)")
            );
        }
        if let Some(list) = &self.trusted_secrets {
            let named = list.named("PRESENCE_TRUSTED_SECRETS (--trusted-secrets)");
            check_list(list).map_err(|why| anyhow::anyhow!("{named} {why}"))?;
        }
        let issuers = self.issuers()?;
        if let Some((name, other)) = self.shared_twice(&issuers) {
            anyhow::bail!(
                "the secret of the issuer '{name}' is in {other} too: its tokens would be read in two ways; leave it out of one"
            );
        }
        Ok(())
    }

    fn issuers(&self) -> anyhow::Result<Vec<IssuerSettings>> {
        self.issuers.read(self.token_leeway)
    }

    /// An issuer whose secret is one of ours too, and which of our settings has it.
    fn shared_twice<'a>(&'a self, issuers: &'a [IssuerSettings]) -> Option<(&'a str, &'a str)> {
        let own = self.jwt_secret.iter().map(|secret| (secret, secret.named("PRESENCE_JWT_SECRET")));
        let trusted = self
            .trusted_secrets
            .iter()
            .flat_map(|list| list.iter().map(|secret| (secret, list.named("PRESENCE_TRUSTED_SECRETS"))));
        let ours: Vec<(&Secret, &str)> = own.chain(trusted).collect();
        issuers.iter().find_map(|issuer| {
            let twice = ours.iter().find(|(secret, _)| issuer.is_verified_with(secret.reveal()))?;
            Some((issuer.name.as_str(), twice.1))
        })
    }

    /// What identity needs of them, with the secret that signs.
    pub(in crate::app) fn identity(&self, secret: &Secret) -> anyhow::Result<identity::Settings> {
        let trusted = self.trusted_secrets.iter().flat_map(SecretList::iter);
        Ok(identity::Settings {
            access_ttl: self.access_ttl,
            refresh_ttl: self.refresh_ttl,
            refresh_grace: self.refresh_grace,
            sessions: identity::SessionPolicy::default(),
            secret: secret.reveal().to_string(),
            trusted_secrets: trusted.map(|secret| secret.reveal().to_string()).collect(),
            // Not for `exp`: the end of a session is remembered for as long as its tokens are good.
            leeway: Leeway { before: self.token_leeway, after: Duration::ZERO },
            issuers: self.issuers()?,
        })
    }
}

fn is_long_enough(secret: &Secret) -> bool {
    secret.reveal().len() >= SECRET_BYTES
}

/// Checks each of several secrets.
///
/// # Errors
/// What they must be, to go on behind the name of their setting.
pub(super) fn check_list(list: &SecretList) -> Result<(), String> {
    if list.iter().all(is_long_enough) {
        return Ok(());
    }
    Err(format!(
        "must each be {SECRET_BYTES} bytes or more; they are apart by commas or lines, so none can hold one"
    ))
}
