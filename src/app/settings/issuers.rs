//! Identity providers whose access tokens are taken: one by flags and variables, several by a file.
//!
//! Both say the same in the same words: a field of the file is the variable without its beginning. An issuer signs with a
//! private key, whose public one is known here, or with a secret that it shares with this service; all else is the same.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use serde::Deserialize;

use super::secret::read_file as read_secret;
use super::tokens::check_list;
use super::{Secret, SecretList, parse};
use crate::identity::token::jwk::{self, PublicKey};
use crate::identity::token::keeper::KeysUrl;
use crate::identity::token::{Algorithm, IssuerSettings, KeySource, Leeway, MAX_KEYS_TRIED};

/// What switches a claim off.
const OFF: &str = "off";
/// Claims that mean something already (RFC 7519).
const RESERVED: [&str; 4] = ["iss", "aud", "exp", "nbf"];
const REFRESH: Duration = Duration::from_mins(5);

/// The settings of an identity provider, and of several.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Tokens of an identity provider (docs/tokens.md)")]
pub struct IssuerFlags {
    /// Its public keys: the URL of a JWK set
    #[arg(long, env = "PRESENCE_JWKS_URL", global = true, value_name = "URL", hide_env_values = true, value_parser = parse::secret)]
    pub jwks_url: Option<Secret>,

    /// How often they are fetched anew (1s to 1d) [default: 5m]
    #[arg(long, env = "PRESENCE_JWKS_REFRESH", global = true, value_name = "TIME", value_parser = parse::jwks_refresh)]
    pub jwks_refresh: Option<Duration>,

    /// Fetch them without TLS from another machine, over a way known to be safe
    #[arg(long, env = "PRESENCE_JWKS_ALLOW_HTTP", global = true)]
    pub jwks_allow_http: bool,

    /// Or its public keys in a PEM file
    #[arg(long, env = "PRESENCE_JWT_PUBLIC_KEY", global = true, value_name = "FILE")]
    pub jwt_public_key: Option<PathBuf>,

    /// Or secrets shared with it, 32 bytes or more each, apart by commas or lines: it signs by HS256, HS384 or HS512
    #[arg(long, env = "PRESENCE_JWT_SHARED_SECRETS", global = true, value_name = "SECRETS", hide_env_values = true, value_parser = parse::secrets)]
    pub jwt_shared_secrets: Option<SecretList>,

    /// What `iss` must be in its tokens [default: not looked at]
    #[arg(long, env = "PRESENCE_JWT_ISSUER", global = true, value_name = "TEXT")]
    pub jwt_issuer: Option<String>,

    /// What `aud` must be, or one of several, comma-separated [default: not looked at]
    #[arg(long, env = "PRESENCE_JWT_AUDIENCE", global = true, value_name = "TEXTS", value_delimiter = ',')]
    pub jwt_audience: Vec<String>,

    /// The claim that holds the account's id, digits only [default: `user_id`]
    #[arg(long, env = "PRESENCE_JWT_USER_CLAIM", global = true, value_name = "CLAIM")]
    pub jwt_user_claim: Option<String>,

    /// The claim that names the login session, or 'off' [default: sid]
    #[arg(long, env = "PRESENCE_JWT_SESSION_CLAIM", global = true, value_name = "CLAIM")]
    pub jwt_session_claim: Option<String>,

    /// The claim that says what a token is for, or 'off' [default: `token_type`]
    #[arg(long, env = "PRESENCE_JWT_TYPE_CLAIM", global = true, value_name = "CLAIM")]
    pub jwt_type_claim: Option<String>,

    /// What that claim says in an access token [default: access]
    #[arg(long, env = "PRESENCE_JWT_TYPE_VALUE", global = true, value_name = "TEXT")]
    pub jwt_type_value: Option<String>,

    /// The algorithms that it may sign by, comma-separated [default: with public keys RS256 to RS512, PS256 to PS512, ES256,
    /// ES384, `EdDSA`; with shared secrets HS256, HS384, HS512]
    #[arg(long, env = "PRESENCE_JWT_ALGORITHMS", global = true, value_name = "NAMES", value_delimiter = ',')]
    pub jwt_algorithms: Vec<String>,

    /// By how much its clock may be off, for `nbf` and `exp` (0 to 5m) [default: the leeway of all tokens for `nbf`, 0 for `exp`]
    #[arg(long, env = "PRESENCE_JWT_LEEWAY", global = true, value_name = "TIME", value_parser = parse::grace)]
    pub jwt_leeway: Option<Duration>,

    /// Several providers: a JSON file with a list of objects, whose fields are named as these settings
    #[arg(long, env = "PRESENCE_ISSUERS", global = true, value_name = "FILE")]
    pub issuers: Option<PathBuf>,
}

/// One provider, as the file says it.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Entry {
    name: String,
    jwks_url: Option<String>,
    #[serde(deserialize_with = "refresh")]
    jwks_refresh: Option<Duration>,
    jwks_allow_http: bool,
    public_key: Option<PathBuf>,
    /// The file has this, so that it need not be secret itself; flags and variables have [`Self::shared_secrets`].
    shared_secrets_file: Option<PathBuf>,
    #[serde(skip)]
    shared_secrets: Option<SecretList>,
    issuer: Option<String>,
    audience: Vec<String>,
    user_claim: Option<String>,
    session_claim: Option<String>,
    type_claim: Option<String>,
    type_value: Option<String>,
    algorithms: Vec<String>,
    #[serde(deserialize_with = "leeway")]
    leeway: Option<Duration>,
}

fn refresh<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse::jwks_refresh(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

fn leeway<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    parse::grace(&String::deserialize(deserializer)?).map(Some).map_err(serde::de::Error::custom)
}

impl IssuerFlags {
    /// Every issuer that is set; `before` is by how much tokens may be shown before their `nbf` where an issuer says nothing.
    ///
    /// # Errors
    /// A message that names the setting, the entry and the field, and what it may be.
    pub(super) fn read(&self, before: Duration) -> anyhow::Result<Vec<IssuerSettings>> {
        let mut found: Vec<IssuerSettings> = self.one(before)?.into_iter().collect();
        if let Some(file) = &self.issuers {
            found.extend(read_file(file, before)?);
        }
        Ok(found)
    }

    /// The one that flags and variables describe.
    fn one(&self, before: Duration) -> anyhow::Result<Option<IssuerSettings>> {
        let entry = Entry {
            name: "default".into(),
            jwks_url: self.jwks_url.as_ref().map(|url| url.reveal().to_owned()),
            jwks_refresh: self.jwks_refresh,
            jwks_allow_http: self.jwks_allow_http,
            public_key: self.jwt_public_key.clone(),
            shared_secrets_file: None,
            shared_secrets: self.jwt_shared_secrets.clone(),
            issuer: self.jwt_issuer.clone(),
            audience: self.jwt_audience.clone(),
            user_claim: self.jwt_user_claim.clone(),
            session_claim: self.jwt_session_claim.clone(),
            type_claim: self.jwt_type_claim.clone(),
            type_value: self.jwt_type_value.clone(),
            algorithms: self.jwt_algorithms.clone(),
            leeway: self.jwt_leeway,
        };
        if entry.jwks_url.is_none() && entry.public_key.is_none() && entry.shared_secrets.is_none() {
            let set = entry.fields_beside_the_keys();
            anyhow::ensure!(
                set.is_empty(),
                "{} (--{}) says how the tokens of an identity provider are read, but there is none: set PRESENCE_JWKS_URL \
                 (--jwks-url), PRESENCE_JWT_PUBLIC_KEY (--jwt-public-key) or PRESENCE_JWT_SHARED_SECRETS \
                 (--jwt-shared-secrets) too. Tokens of PRESENCE_TRUSTED_SECRETS have the claims of this service",
                variable(set[0]),
                flag(set[0])
            );
            return Ok(None);
        }
        match entry.issuer(Path::new(""), before) {
            Ok(issuer) => Ok(Some(issuer)),
            Err((field, why)) => anyhow::bail!("{} {why}", self.named(field)),
        }
    }

    /// What a field was set by, as far as that is known; else its variable and its flag.
    fn named(&self, field: &str) -> String {
        let setting = format!("{} (--{})", variable(field), flag(field));
        let named = match field {
            "jwks_url" => self.jwks_url.as_ref().map(|url| url.named(&setting)),
            "shared_secrets" => self.jwt_shared_secrets.as_ref().map(|list| list.named(&setting)),
            _ => None,
        };
        named.map_or(setting.clone(), str::to_owned)
    }
}

/// The variable of a field.
fn variable(field: &str) -> String {
    format!("PRESENCE_{}", flag(field).replace('-', "_").to_uppercase())
}

/// The flag of a field.
fn flag(field: &str) -> String {
    let prefix = if field.starts_with("jwks_") { "" } else { "jwt-" };
    format!("{prefix}{}", field.replace('_', "-"))
}

fn read_file(file: &Path, before: Duration) -> anyhow::Result<Vec<IssuerSettings>> {
    let named = "PRESENCE_ISSUERS (--issuers)";
    let text = std::fs::read(file).map_err(|error| {
        anyhow::anyhow!("{named} must be a JSON file that can be read; {}: {error}", file.display())
    })?;
    let mut json = serde_json::Deserializer::from_slice(&text);
    let entries: Vec<Entry> = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let (path, error) = (error.path().to_string(), error.into_inner());
        let at = if path == "." { String::new() } else { format!(" at {path}") };
        anyhow::anyhow!(
            "{named} must hold a list of issuers (docs/tokens.md); {}{at}: {error}",
            file.display()
        )
    })?;
    json.end().map_err(|error| anyhow::anyhow!("{named} must hold one list; {}: {error}", file.display()))?;
    let folder = file.parent().unwrap_or(Path::new(""));
    let mut known = HashSet::new();
    let mut issuers = Vec::new();
    for (index, entry) in entries.into_iter().enumerate() {
        let place = format!("{named}: entry {} of {}", index + 1, file.display());
        anyhow::ensure!(
            !entry.name.is_empty() && known.insert(entry.name.clone()),
            "{place}: name must be a text that no other entry has"
        );
        let place = format!("{place} ('{}')", entry.name);
        let issuer = entry.issuer(folder, before);
        issuers.push(issuer.map_err(|(field, why)| anyhow::anyhow!("{place}: {field} {why}"))?);
    }
    Ok(issuers)
}

impl Entry {
    fn fields_beside_the_keys(&self) -> Vec<&'static str> {
        [
            ("jwks_refresh", self.jwks_refresh.is_some()),
            ("jwks_allow_http", self.jwks_allow_http),
            ("issuer", self.issuer.is_some()),
            ("audience", !self.audience.is_empty()),
            ("user_claim", self.user_claim.is_some()),
            ("session_claim", self.session_claim.is_some()),
            ("type_claim", self.type_claim.is_some()),
            ("type_value", self.type_value.is_some()),
            ("algorithms", !self.algorithms.is_empty()),
            ("leeway", self.leeway.is_some()),
        ]
        .into_iter()
        .filter_map(|(field, is_set)| is_set.then_some(field))
        .collect()
    }

    /// What it says; a refusal names the field, and says what it may be.
    fn issuer(self, folder: &Path, before: Duration) -> Result<IssuerSettings, (&'static str, String)> {
        let algorithms = self.algorithms()?;
        let keys = self.keys(folder, &algorithms)?;
        let by_default = Leeway { before, after: Duration::ZERO };
        if self.issuer.as_deref() == Some("") {
            return Err((
                "issuer",
                "must be what the claim 'iss' says; leave it out where it is not looked at".into(),
            ));
        }
        if self.audience.iter().any(String::is_empty) {
            return Err((
                "audience",
                "must be what the claim 'aud' says; leave it out where it is not looked at".into(),
            ));
        }
        let claim = |set: Option<String>, default: &str| {
            Some(set.unwrap_or_else(|| default.to_owned())).filter(|claim| claim != OFF)
        };
        let user_claim = self.user_claim.unwrap_or_else(|| "user_id".to_owned());
        let session_claim = claim(self.session_claim, "sid");
        let type_claim = claim(self.type_claim, "token_type");
        let mut taken: HashSet<&str> = RESERVED.into();
        for (field, claim) in [
            ("user_claim", Some(&user_claim)),
            ("session_claim", session_claim.as_ref()),
            ("type_claim", type_claim.as_ref()),
        ] {
            if claim.is_some_and(|claim| claim.is_empty() || !taken.insert(claim)) {
                return Err((
                    field,
                    format!(
                        "must be the name of a claim of its own; {} and the other claims named here are taken",
                        RESERVED.join(", ")
                    ),
                ));
            }
        }
        if type_claim.is_none() && self.type_value.is_some() {
            return Err((
                "type_value",
                "is what the claim type_claim says, which is off: leave one of them out".into(),
            ));
        }
        let type_value = self.type_value.unwrap_or_else(|| "access".to_owned());
        Ok(IssuerSettings {
            name: self.name,
            keys,
            iss: self.issuer,
            audience: self.audience,
            user_claim,
            session_claim,
            access_mark: type_claim.map(|claim| (claim, type_value)),
            algorithms,
            leeway: self.leeway.map_or(by_default, Leeway::both),
        })
    }

    /// The algorithms that it may sign by, all of one kind: those of secrets, or those of private keys.
    fn algorithms(&self) -> Result<Vec<Algorithm>, (&'static str, String)> {
        let shares_secrets = self.shared_secrets.is_some() || self.shared_secrets_file.is_some();
        let (all, others): (&[Algorithm], _) = if shares_secrets {
            (&jwk::SHARED_ALGORITHMS, "the others are for public keys (jwks_url, public_key)")
        } else {
            (
                &jwk::ALGORITHMS,
                "those of shared secrets are for PRESENCE_JWT_SHARED_SECRETS, shared_secrets_file and PRESENCE_TRUSTED_SECRETS",
            )
        };
        if self.algorithms.is_empty() {
            return Ok(all.to_vec());
        }
        let read = |name: &String| {
            let name = name.trim();
            if shares_secrets { jwk::shared_algorithm(name) } else { jwk::algorithm(name) }
        };
        self.algorithms.iter().map(read).collect::<Option<Vec<_>>>().ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|algorithm| format!("{algorithm:?}")).collect();
            ("algorithms", format!("must be among {}; {others}", names.join(", ")))
        })
    }

    fn keys(&self, folder: &Path, algorithms: &[Algorithm]) -> Result<KeySource, (&'static str, String)> {
        let places = [
            ("jwks_url", self.jwks_url.is_some()),
            ("public_key", self.public_key.is_some()),
            ("shared_secrets", self.shared_secrets.is_some()),
            ("shared_secrets_file", self.shared_secrets_file.is_some()),
        ];
        let mut set = places.into_iter().filter_map(|(field, is_set)| is_set.then_some(field));
        if let (Some(one), Some(other)) = (set.next(), set.next()) {
            return Err((other, format!("is one place of its keys, {one} another: leave one of them out")));
        }
        if let Some(url) = &self.jwks_url {
            let refresh = self.jwks_refresh.unwrap_or(REFRESH);
            let url = KeysUrl::parse(url, refresh, self.jwks_allow_http);
            url.map(KeySource::Url).map_err(|why| ("jwks_url", why))
        } else if let Some(file) = &self.public_key {
            public_keys(&folder.join(file), algorithms).map_err(|why| ("public_key", why))
        } else if let Some(list) = &self.shared_secrets {
            shared(list).map_err(|why| ("shared_secrets", why))
        } else if let Some(file) = &self.shared_secrets_file {
            let file = folder.join(file);
            let told =
                |why: String| ("shared_secrets_file", format!("names {}, which {why}", file.display()));
            let text = read_secret(&file).map_err(told)?;
            shared(&SecretList::of_setting(&text, None))
                .map_err(|why| told(format!("has secrets that {why}")))
        } else {
            Err((
                "jwks_url",
                "must be set, or public_key or shared_secrets_file: what its tokens are verified with".into(),
            ))
        }
    }
}

fn shared(list: &SecretList) -> Result<KeySource, String> {
    if list.is_empty() {
        return Err("must be one or more".to_owned());
    }
    check_list(list)?;
    Ok(KeySource::Shared(list.iter().map(|secret| secret.reveal().to_owned()).collect()))
}

fn public_keys(file: &Path, algorithms: &[Algorithm]) -> Result<KeySource, String> {
    let told = |why| format!("names {}, which {why}", file.display());
    let text = std::fs::read_to_string(file).map_err(|error| told(format!("cannot be read: {error}")))?;
    let keys = PublicKey::from_pem(&text).map_err(told)?;
    if keys.iter().any(|key| !algorithms.iter().any(|algorithm| key.is_for(*algorithm))) {
        return Err(told("holds a key for none of the algorithms that are set".into()));
    }
    // Keys in PEM have no names, so a token is tried against each of its kind.
    let of_one_kind = |algorithm: &Algorithm| keys.iter().filter(|key| key.is_for(*algorithm)).count();
    if algorithms.iter().map(of_one_kind).any(|count| count > MAX_KEYS_TRIED) {
        return Err(told(format!(
            "holds more than {MAX_KEYS_TRIED} keys of one kind: a token is tried against {MAX_KEYS_TRIED} at most"
        )));
    }
    Ok(KeySource::Fixed(keys))
}

#[cfg(test)]
#[path = "issuers_tests.rs"]
mod tests;
