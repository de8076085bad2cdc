//! Every request body: whatever bytes come, parsing answers with a value or with a 4xx that holds none of them.
#![no_main]

use libfuzzer_sys::fuzz_target;
use presenced::http::body::parse;
use presenced::http::handlers::{admin, identity, presence};

macro_rules! try_each {
    ($data:expr, $($body:ty),+ $(,)?) => {
        $(if let Err(problem) = parse::<$body>($data) {
            assert!(problem.status().is_client_error(), "{}: {problem:?}", stringify!($body));
        })+
    };
}

fuzz_target!(|data: &[u8]| {
    try_each!(
        data,
        identity::RegisterBody,
        identity::LoginBody,
        identity::RefreshBody,
        presence::HeartbeatBody,
        admin::NewAccountBody,
        admin::EditBody,
        admin::StatusBody,
    );
});
