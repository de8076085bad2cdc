//! Cross-origin requests: closed, unless the settings name origins.
//!
//! What a browser asks before such a request is answered from the route itself: its refusal of `OPTIONS` lists the
//! methods of the path. Credentials are never allowed: a token in `Authorization` is not one in the sense of browsers.

use std::sync::Arc;

use axum::http::{HeaderMap, HeaderValue, Method, Response, StatusCode, header};
use http_body_util::{Either, Full};

use super::front::AnswerBody;

/// What a request from elsewhere may carry.
static REQUEST_HEADERS: HeaderValue =
    HeaderValue::from_static("authorization, content-type, if-none-match, x-presence-activity");
/// What scripts from elsewhere may read of an answer besides the plain headers.
static EXPOSED: HeaderValue = HeaderValue::from_static("etag, retry-after");
/// How long browsers may keep the answer to their question, seconds: as long as Chromium ever does.
static MAX_AGE: HeaderValue = HeaderValue::from_static("7200");

/// The origins whose scripts may call this service. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Origins(Inner);

#[derive(Debug, Clone, Default, PartialEq, Eq)]
enum Inner {
    #[default]
    None,
    Any,
    These(Arc<[HeaderValue]>),
}

/// A request as far as its origin matters.
#[derive(Debug)]
pub(super) struct Call {
    /// What `Access-Control-Allow-Origin` says.
    allowed: HeaderValue,
    is_question: bool,
}

impl Origins {
    /// Reads `https://app.example.com,http://localhost:3000`, or `*` for all. Nothing is none.
    ///
    /// # Errors
    /// Which entry is no origin, and what one is.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries: Vec<_> = text.split(',').map(str::trim).filter(|entry| !entry.is_empty()).collect();
        match entries[..] {
            [] => Ok(Self(Inner::None)),
            ["*"] => Ok(Self(Inner::Any)),
            _ => {
                let origins = entries.into_iter().map(|entry| {
                    let origin = entry.to_ascii_lowercase();
                    origin.parse().ok().filter(|_| is_origin(&origin)).ok_or_else(|| {
                        format!(
                            "'{entry}' is no origin: give scheme, host and any port that is not the scheme's own, with no \
                             path and no slash at the end, such as https://app.example.com; or * alone for all"
                        )
                    })
                });
                Ok(Self(Inner::These(origins.collect::<Result<Vec<_>, _>>()?.into())))
            }
        }
    }

    /// Looks at a request: `None` where its origin gives it no rights.
    pub(super) fn call(&self, method: &Method, headers: &HeaderMap) -> Option<Call> {
        let origin = || headers.get(header::ORIGIN);
        let allowed = match &self.0 {
            Inner::None => None,
            Inner::Any => origin().map(|_| HeaderValue::from_static("*")),
            Inner::These(known) => origin().filter(|origin| known.contains(origin)).cloned(),
        }?;
        let is_question =
            method == Method::OPTIONS && headers.contains_key(header::ACCESS_CONTROL_REQUEST_METHOD);
        Some(Call { allowed, is_question })
    }

    /// Finishes the answer to a call. It is the last to see it: axum lists the methods of a path after every layer.
    pub(super) fn finish(&self, call: Option<Call>, response: Response<AnswerBody>) -> Response<AnswerBody> {
        let mut response = match call {
            Some(call) => call.grant(response),
            None => response,
        };
        if self.vary() {
            response.headers_mut().append(header::VARY, HeaderValue::from_static("origin"));
        }
        response
    }

    /// Whether answers differ from origin to origin.
    const fn vary(&self) -> bool {
        matches!(self.0, Inner::These(_))
    }
}

impl Call {
    /// Gives the answer its rights, or turns it into that to a browser's question.
    fn grant(self, response: Response<AnswerBody>) -> Response<AnswerBody> {
        let (mut head, mut body) = response.into_parts();
        let headers = &mut head.headers;
        if let (true, Some(methods)) = (self.is_question, headers.get(header::ALLOW).cloned()) {
            (head.status, body) = (StatusCode::NO_CONTENT, Either::Left(Full::default()));
            headers.remove(header::CONTENT_TYPE);
            headers.remove(header::CONTENT_LENGTH);
            headers.insert(header::ACCESS_CONTROL_ALLOW_METHODS, methods);
            headers.insert(header::ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS.clone());
            headers.insert(header::ACCESS_CONTROL_MAX_AGE, MAX_AGE.clone());
        }
        headers.insert(header::ACCESS_CONTROL_ALLOW_ORIGIN, self.allowed);
        headers.insert(header::ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED.clone());
        Response::from_parts(head, body)
    }
}

/// An origin as browsers send it (RFC 6454, section 6.2): lower case, no path, no port that is the scheme's own.
fn is_origin(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let is_scheme = scheme.starts_with(|first: char| first.is_ascii_alphabetic())
        && scheme.chars().all(|sign| sign.is_ascii_alphanumeric() || "+-.".contains(sign));
    let (host, port) = match rest.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => {
            (Some(address), port.strip_prefix(':').or((!port.is_empty()).then_some("")))
        }
        Some(_) => (None, None),
        None => match rest.split_once(':') {
            Some((host, port)) => (Some(host), Some(port)),
            None => (Some(rest), None),
        },
    };
    let is_host = host.is_some_and(|host| {
        !host.is_empty() && host.chars().all(|sign| sign.is_ascii_alphanumeric() || "-._:".contains(sign))
    });
    let is_port = port.is_none_or(|port| {
        let own = matches!((scheme, port), ("http", "80") | ("https", "443"));
        !own && port.bytes().all(|byte| byte.is_ascii_digit())
            && port.parse::<u16>().is_ok_and(|port| port > 0)
    });
    is_scheme && is_host && is_port
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(setting: &str, origin: &str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(header::ORIGIN, origin.parse().unwrap());
        let call = Origins::parse(setting).unwrap().call(&Method::GET, &headers)?;
        Some(call.allowed.to_str().unwrap().to_owned())
    }

    #[test]
    fn only_the_origins_of_the_setting_have_rights() {
        let setting =
            "https://app.example.com, HTTP://LocalHost:3000,http://[::1]:8080,capacitor://localhost,";
        for origin in
            ["https://app.example.com", "http://localhost:3000", "http://[::1]:8080", "capacitor://localhost"]
        {
            assert_eq!(allowed(setting, origin).as_deref(), Some(origin));
        }
        for origin in [
            "http://app.example.com",
            "https://app.example.com:8443",
            "https://evil.app.example.com",
            "https://app.example.com.evil.org",
            "null",
            "",
        ] {
            assert_eq!(allowed(setting, origin), None, "{origin}");
        }
        assert_eq!(allowed("*", "https://any.example").as_deref(), Some("*"));
        assert_eq!(allowed("", "https://any.example"), None);
    }

    #[test]
    fn what_is_no_origin_is_refused_with_what_one_is() {
        for entry in [
            "app.example.com",
            "https://",
            "https://app.example.com/",
            "https://app.example.com/path",
            "https://app.example.com:443",
            "http://app.example.com:80",
            "https://app.example.com:0",
            "https://app.example.com:99999",
            "https://app.example.com:",
            "https://*.example.com",
            "https://user@app.example.com",
            "https://b\u{fc}cher.example",
            "http://[::1",
            "http://[xyz]",
            "http://[::1]x",
            "://host",
            "null",
        ] {
            for text in [entry.to_owned(), format!("https://good.example,{entry}")] {
                let refusal = Origins::parse(&text).unwrap_err();
                assert!(refusal.contains(entry) && refusal.contains("such as https://"), "{refusal}");
            }
        }
        assert!(Origins::parse("*,https://good.example").is_err());
    }
}
