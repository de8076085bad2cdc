//! The Lua scripts: their sources, and how one is called.

use std::sync::{LazyLock, Mutex, PoisonError};

use fred::interfaces::LuaInterface;
use fred::types::scripts::Script as FredScript;
use fred::types::{FromValue, Key, Value};

use super::Result;
use super::link::Link;

/// A script of `lua/`, with what it needs of `lua/lib/` before it.
pub(super) struct Script {
    pub(super) name: &'static str,
    source: LazyLock<FredScript>,
}

macro_rules! script {
    ($name:ident: $($lib:literal)*) => {
        pub(in crate::live) static $name: Script = Script {
            name: stringify!($name),
            source: LazyLock::new(|| FredScript::from_lua(concat!(
                $(include_str!(concat!("../../lua/lib/", $lib, ".lua")),)*
                include_str!(concat!("../../lua/", stringify!($name), ".lua")),
            ))),
        };
    };
}

/// One static a script, named as its file.
#[allow(non_upper_case_globals)]
pub(super) mod named {
    use super::{FredScript, LazyLock, Script};
    script!(ack:);
    script!(affirm: "clock" "transitions" "sessions");
    script!(arrive: "clock" "life" "heard" "transitions" "sessions");
    script!(audit: "clock" "sessions");
    script!(block: "clock" "transitions" "sessions");
    script!(blocked:);
    script!(check: "life" "sessions");
    script!(claim: "clock" "life" "transitions");
    script!(clock_back: "clock" "sessions");
    script!(due: "clock" "life");
    script!(epoch: "clock" "life");
    script!(fence: "life");
    script!(heartbeat: "clock" "life" "heard");
    script!(leave: "clock" "transitions" "sessions");
    script!(limit:);
    script!(measure: "clock");
    script!(members:);
    script!(mend: "clock" "transitions" "sessions");
    script!(online: "clock");
    script!(raise: "life");
    script!(read: "clock" "sessions");
    script!(reconcile: "clock" "life" "transitions");
    script!(resign:);
    script!(seen: "clock");
    script!(set_status: "clock" "life" "transitions" "sessions");
    script!(stock: "clock");
    script!(take: "clock");
    script!(turn: "turns");
    script!(unsettled: "clock");
}

impl Script {
    /// Runs the script with what `call` gives: its keys and arguments, made anew where Redis has forgotten the script
    /// (`SCRIPT FLUSH`, a restart, a failover) and must be told its source.
    pub(super) async fn run<R: FromValue>(
        &self,
        link: &Link,
        call: impl Fn() -> (Vec<Key>, Vec<Value>),
    ) -> Result<R> {
        let first = call();
        let key = first.0[0].clone();
        // Made anew only where the call is: to make them is most of what a batch costs this process.
        let first = Mutex::new(Some(first));
        let prepare = || first.lock().unwrap_or_else(PoisonError::into_inner).take().unwrap_or_else(&call);
        let answer = link.call(&key, |client| {
            let (keys, args) = prepare();
            async move { self.source.evalsha::<R, _, _, _>(&client, keys, args).await }
        });
        match answer.await? {
            Err(error) if error.details().starts_with("NOSCRIPT") => {
                tracing::debug!(script = self.name, "Redis does not know this script and is told it");
                let answer = link.call(&key, |client| {
                    let source = self.source.lua().cloned().unwrap_or_default();
                    let (keys, args) = call();
                    async move { client.eval::<R, _, _, _>(source, keys, args).await }
                });
                Ok(answer.await??)
            }
            other => Ok(other?),
        }
    }
}
