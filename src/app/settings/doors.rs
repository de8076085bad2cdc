//! Who may knock, and how: the address that is listened on, and what stands before the handlers.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::Context as _;
use clap::Args;

use super::parse;
use crate::http::{Doors, Guard, Origins, Patience, PemPair, Tls, TrustedProxies};

/// Files that connections leave to Redis, SQL, the log and the data folder.
const RESERVED: u64 = 256;
/// Connections at once to the listener of the metrics, out of [`RESERVED`].
const METRICS_CONNECTIONS: usize = 64;
/// The most connections by default: idle ones take about 10 KB each.
const MOST: u64 = 100_000;
/// How many files may be open where that cannot be asked: what most systems begin with.
const FILES: u64 = 1_024;

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

    /// An address of its own for `GET /metrics`, in clear text, which is then served nowhere else [default: it is served on
    /// the main address]
    #[arg(long, env = "PRESENCE_METRICS_LISTEN", global = true, value_name = "ADDRESS", value_parser = parse::address)]
    pub metrics_listen: Option<SocketAddr>,

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

    /// Origins whose scripts may call this service, comma-separated, or * for all [default: none]
    #[arg(
        long,
        env = "PRESENCE_CORS_ORIGINS",
        default_value = "",
        hide_default_value = true,
        global = true,
        value_name = "ORIGINS",
        value_parser = Origins::parse
    )]
    pub cors_origins: Origins,

    /// TLS: a PEM file with the server's certificate and those between it and the root. It is read again when it changes
    #[arg(long, env = "PRESENCE_TLS_CERT", global = true, value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// TLS: a PEM file with the certificate's private key
    #[arg(long, env = "PRESENCE_TLS_KEY", global = true, value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Connections at once [default: what the limit of open files leaves, 100000 at most]
    #[arg(long, env = "PRESENCE_MAX_CONNECTIONS", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections: Option<u32>,

    /// Connections at once from one address (of IPv6: from one /64), so that one client cannot take them all; trusted proxies
    /// have no such bound [default: half of `PRESENCE_MAX_CONNECTIONS`]
    #[arg(long, env = "PRESENCE_MAX_CONNECTIONS_PER_ADDRESS", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_connections_per_address: Option<u32>,

    /// Requests of one user that are answered at once; heartbeats are not counted. More get 429
    #[arg(long, env = "PRESENCE_MAX_REQUESTS_PER_USER", default_value = "64", global = true, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_requests_per_user: u32,

    /// Listen beyond this machine though the password of 'admin' is still the generated one
    #[arg(long, env = "PRESENCE_ALLOW_GENERATED_PASSWORD", global = true)]
    pub allow_generated_password: bool,
}

impl DoorSettings {
    pub(super) fn check(&self) -> anyhow::Result<()> {
        anyhow::ensure!(
            self.tls_cert.is_some() == self.tls_key.is_some(),
            "PRESENCE_TLS_CERT (--tls-cert) and PRESENCE_TLS_KEY (--tls-key) belong together: set both, or neither"
        );
        Ok(())
    }

    /// Whether whoever is not on this machine may knock.
    pub(in crate::app) fn are_exposed(&self) -> bool {
        !self.listen.ip().to_canonical().is_loopback()
    }

    /// How the outside is met.
    pub(in crate::app) fn guard(&self) -> Guard {
        Guard { origins: self.cors_origins.clone(), tls: self.tls_cert.is_some() }
    }

    /// Who is let in: reads the certificate, and sees how many files may be open.
    pub(in crate::app) fn open(&self) -> anyhow::Result<Doors> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => {
                let pair = PemPair { certificate: certificate.clone(), key: key.clone() };
                Some(Tls::load(pair).context("PRESENCE_TLS_CERT and PRESENCE_TLS_KEY cannot be used")?)
            }
            _ => None,
        };
        // Half as a rule is the shell's habit, not a need. Where it is refused, what there is must do.
        let files = rlimit::increase_nofile_limit(u64::MAX).unwrap_or(FILES);
        let most = files.saturating_sub(RESERVED).max(files / 2);
        if let Some(wanted) = self.max_connections {
            anyhow::ensure!(
                u64::from(wanted) <= most,
                "PRESENCE_MAX_CONNECTIONS (--max-connections) can be {most} at most, because this process may open {files} \
                 files: raise that (ulimit -n, systemd's LimitNOFILE), or set a smaller number"
            );
        }
        let most = self.max_connections.map_or(most.min(MOST), u64::from);
        let per_address = self.max_connections_per_address.map_or_else(|| most.div_ceil(2), u64::from);
        let number = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
        Ok(Doors {
            tls,
            max_connections: number(most),
            max_connections_per_address: number(per_address),
            trusted_proxies: self.trusted_proxies.clone(),
            patience: Patience::default(),
        })
    }

    /// How the listener of the metrics lets in: as the main one, but in clear text, and with a few connections of its own
    /// out of those files that the main one leaves.
    pub(in crate::app) fn open_for_metrics(&self) -> Doors {
        Doors {
            tls: None,
            max_connections: METRICS_CONNECTIONS,
            max_connections_per_address: METRICS_CONNECTIONS,
            trusted_proxies: self.trusted_proxies.clone(),
            patience: Patience::default(),
        }
    }
}
