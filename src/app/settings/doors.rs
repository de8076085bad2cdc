//! Who may knock, and how: the address that is listened on, and what stands before the handlers.

use std::net::SocketAddr;

use clap::Args;

use super::parse;
use crate::http::TrustedProxies;

/// The settings of the doors.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Doors")]
pub struct DoorSettings {
    /// HTTP address; port 0 takes a free one
    #[arg(
        long,
        env = "PRESENCE_LISTEN",
        default_value = "127.0.0.1:8000",
        global = true,
        value_name = "ADDRESS",
        value_parser = parse::address
    )]
    pub listen: SocketAddr,

    /// Reverse proxies whose `X-Forwarded-For` says who the client is: addresses or networks, comma-separated
    #[arg(
        long,
        env = "PRESENCE_TRUSTED_PROXIES",
        default_value = "",
        hide_default_value = true,
        global = true,
        value_name = "NETWORKS",
        value_parser = TrustedProxies::parse
    )]
    pub trusted_proxies: TrustedProxies,
}
