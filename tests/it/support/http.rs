//! A client for the service's API that returns whatever it is told, errors included.

pub use reqwest::StatusCode;
use reqwest::{Client, Method, RequestBuilder, header::HeaderMap};
use serde_json::{Value, json};

use super::tls::plain_client;

/// What came back. A body that is no JSON is a `Value::String`, none at all `Value::Null`.
pub type Answer = (StatusCode, Value, HeaderMap);

/// The password of every account made by [`Api::register`].
pub const PASSWORD: &str = "a long enough passphrase";

/// A client of one service. Clones share their connections.
#[derive(Clone, Debug)]
pub struct Api {
    base: String,
    client: Client,
}

/// What a login gives.
#[derive(Clone, Debug)]
pub struct Tokens {
    pub access: String,
    pub refresh: String,
    pub user: Value,
}

impl Tokens {
    /// The id of the user who has logged in.
    pub fn user_id(&self) -> i64 {
        self.user["id"].as_i64().expect("an id is an integer")
    }
}

impl Api {
    /// A client for the service at `base`, as [`Presenced::base_url`](super::process::Presenced::base_url) gives it.
    pub fn new(base: &str) -> Self {
        Self::with(base, plain_client().build().expect("a client"))
    }

    /// The same with a client of the test's own making.
    pub fn with(base: &str, client: Client) -> Self {
        Self { base: base.trim_end_matches('/').to_owned(), client }
    }

    /// The whole URL: `path` is below `/api/users/`, or counts from the root where it begins with a slash.
    pub fn url(&self, path: &str) -> String {
        if path.starts_with('/') {
            format!("{}{path}", self.base)
        } else {
            format!("{}/api/users/{path}", self.base)
        }
    }

    /// Makes the account `name`, with the address `name@example.org` and [`PASSWORD`], and returns the user.
    pub async fn register(&self, name: &str) -> Value {
        let body = json!({"username": name, "email": format!("{name}@example.org"), "password": PASSWORD});
        let (status, body, _) = self.post("register/", None, &body).await;
        assert_eq!(status, StatusCode::CREATED, "register {name}: {body}");
        body["user"].clone()
    }

    /// Logs in an account that [`register`](Self::register) has made.
    pub async fn login(&self, name: &str) -> Tokens {
        self.login_with(name, PASSWORD).await
    }

    /// Logs in any account.
    pub async fn login_with(&self, name: &str, password: &str) -> Tokens {
        let (status, body, _) =
            self.post("login/", None, &json!({"username": name, "password": password})).await;
        assert_eq!(status, StatusCode::OK, "login {name}: {body}");
        let text =
            |field: &str| body[field].as_str().unwrap_or_else(|| panic!("no {field} in {body}")).to_owned();
        Tokens { access: text("access"), refresh: text("refresh"), user: body["user"].clone() }
    }

    /// A plain heartbeat, with an empty body.
    pub async fn heartbeat(&self, access: &str) -> Answer {
        send(self.request(Method::POST, "heartbeat/", Some(access))).await
    }

    pub async fn get(&self, path: &str, token: Option<&str>) -> Answer {
        send(self.request(Method::GET, path, token)).await
    }

    pub async fn post(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        send(self.request(Method::POST, path, token).json(body)).await
    }

    pub async fn patch(&self, path: &str, token: Option<&str>, body: &Value) -> Answer {
        send(self.request(Method::PATCH, path, token).json(body)).await
    }

    pub async fn delete(&self, path: &str, token: Option<&str>) -> Answer {
        send(self.request(Method::DELETE, path, token)).await
    }

    /// A request to finish by hand, for what the others do not send: bad bodies, odd headers. Then [`send`].
    pub fn request(&self, method: Method, path: &str, token: Option<&str>) -> RequestBuilder {
        let request = self.client.request(method, self.url(path));
        match token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }
}

/// Sends a request and reads the whole answer. No connection is a failure of the test; see [`try_send`].
pub async fn send(request: RequestBuilder) -> Answer {
    try_send(request).await.expect("an answer")
}

/// [`send`] for a service that may be down.
pub async fn try_send(request: RequestBuilder) -> reqwest::Result<Answer> {
    let response = request.send().await?;
    let (status, headers) = (response.status(), response.headers().clone());
    let text = response.text().await?;
    let body = match serde_json::from_str(&text) {
        Ok(body) => body,
        Err(_) if text.is_empty() => Value::Null,
        Err(_) => Value::String(text),
    };
    Ok((status, body, headers))
}
