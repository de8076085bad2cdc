//! Access tokens minted elsewhere, with the service's secret: how a test has a thousand users without a thousand logins.

use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use serde_json::json;

/// The secret that services under test are given.
pub const SECRET: &str = "a secret of the tests that is long enough for HS256";

/// The variable that gives it to a service.
pub fn secret_variable() -> (String, String) {
    ("PRESENCE_JWT_SECRET".to_owned(), SECRET.to_owned())
}

/// An access token good for an hour, `sid` left out where it is empty.
pub fn access_token(user: i64, sid: &str) -> String {
    let now = chrono::Utc::now().timestamp();
    let mut claims = json!({
        "token_type": "access",
        "user_id": user,
        "sub": user.to_string(),
        "jti": format!("{user}-{now}"),
        "iat": now,
        "exp": now + 3600,
    });
    if !sid.is_empty() {
        claims["sid"] = sid.into();
    }
    let key = EncodingKey::from_secret(SECRET.as_bytes());
    encode(&Header::new(Algorithm::HS256), &claims, &key).expect("claims that can be signed")
}
