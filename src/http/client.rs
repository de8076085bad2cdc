//! Who is at the other end of the connection, and who behind the proxies before it.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::HeaderMap;
use axum::http::request::Parts;
use ipnet::{IpNet, Ipv4Net};

use super::AppState;
use super::problem::Problem;

/// Where each proxy notes, at the end, whom it has the request from.
const FORWARDED: &str = "x-forwarded-for";
/// How much longer the prefix of an IPv4 network is, in bits, where the network is written as IPv4-mapped IPv6.
const MAPPED: u8 = 96;

/// The other end of the connection, which the accept loop puts into each request.
#[derive(Debug, Clone, Copy)]
pub struct Peer(pub SocketAddr);

/// The address of the client: of the peer, or of whoever trusted proxies say that they speak for. IPv4 is never in its
/// IPv6-mapped form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ClientAddress(pub IpAddr);

/// The networks whose word about the client counts. Clones share them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TrustedProxies(Arc<[IpNet]>);

impl FromRequestParts<AppState> for ClientAddress {
    type Rejection = Problem;
    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Problem> {
        let peer = parts.extensions.get::<Peer>().ok_or_else(|| {
            tracing::error!("a request came without its peer's address; this is a defect");
            Problem::internal()
        })?;
        Ok(Self(state.trusted_proxies.client(peer.0.ip(), &parts.headers)))
    }
}

impl TrustedProxies {
    /// Reads addresses and networks, separated by commas: `10.0.0.0/8, 192.0.2.1`. Nothing is nobody.
    ///
    /// # Errors
    /// What the text may be.
    pub fn parse(text: &str) -> Result<Self, String> {
        let entries = text.split(',').map(str::trim).filter(|entry| !entry.is_empty());
        let network = |entry: &str| {
            let read = entry.parse().or_else(|_| entry.parse::<IpAddr>().map(IpNet::from)).map(canonical);
            read.map_err(|_| {
                "must be addresses or networks, separated by commas, such as 10.0.0.0/8,192.0.2.1".to_string()
            })
        };
        entries.map(network).collect::<Result<Vec<_>, _>>().map(|networks| Self(networks.into()))
    }

    /// The client of a request from `peer`: the last address in the chain of proxies whom a trusted one names. What
    /// anybody else has written counts for nothing, and what cannot be read ends the chain.
    pub(super) fn client(&self, peer: IpAddr, headers: &HeaderMap) -> IpAddr {
        let mut client = peer.to_canonical();
        if self.0.is_empty() {
            return client;
        }
        let lines = headers.get_all(FORWARDED).iter().rev();
        let entries =
            lines.flat_map(|line| line.as_bytes().rsplit(|byte| *byte == b',')).map(<[u8]>::trim_ascii);
        for entry in entries.filter(|entry| !entry.is_empty()) {
            if !self.trusts(client) {
                break;
            }
            match address(entry) {
                Some(next) => client = next,
                None => break,
            }
        }
        client
    }

    /// Whether the address is a trusted proxy's.
    pub(super) fn trusts(&self, address: IpAddr) -> bool {
        let address = address.to_canonical();
        self.0.iter().any(|network| network.contains(&address))
    }
}

/// What one client has of the address space: its IPv4 address, or the /64 of its IPv6 address, as that network's first
/// address.
pub(super) fn block(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & !u128::from(u64::MAX)).into(),
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// An address as proxies write it: with or without a port, IPv6 with or without brackets.
fn address(entry: &[u8]) -> Option<IpAddr> {
    let text = std::str::from_utf8(entry).ok()?;
    let in_brackets = || text.strip_prefix('[')?.strip_suffix(']')?.parse().ok();
    let plain = text.parse().ok().or_else(|| text.parse().ok().map(|address: SocketAddr| address.ip()));
    plain.or_else(in_brackets).map(|address: IpAddr| address.to_canonical())
}

/// A network of IPv4-mapped IPv6 addresses is one of IPv4 addresses.
fn canonical(network: IpNet) -> IpNet {
    match (network.addr().to_canonical(), network.prefix_len()) {
        (IpAddr::V4(address), length @ MAPPED..) if network.addr().is_ipv6() => {
            Ipv4Net::new(address, length - MAPPED).map_or(network, IpNet::V4)
        }
        _ => network,
    }
}

#[cfg(test)]
mod tests {
    use axum::http::HeaderValue;

    use super::*;

    const PROXIES: &str = "10.0.0.0/8, 192.0.2.1,2001:db8::/32 , ::ffff:172.16.0.0/108,";

    fn client(peer: &str, lines: &[&[u8]]) -> String {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(FORWARDED, HeaderValue::from_bytes(line).unwrap());
        }
        TrustedProxies::parse(PROXIES).unwrap().client(peer.parse().unwrap(), &headers).to_string()
    }

    #[test]
    fn the_client_is_whom_the_last_trusted_proxy_names() {
        let table: [(&str, &[&[u8]], &str); 24] = [
            ("198.51.100.7", &[], "198.51.100.7"),
            ("10.0.0.1", &[], "10.0.0.1"),
            ("10.0.0.1", &[b""], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.9"], "203.0.113.9"),
            // A client's own word, which its proxy has passed on before its own.
            ("10.0.0.1", &[b"127.0.0.1, 203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &[b"127.0.0.1", b"203.0.113.9"], "203.0.113.9"),
            ("10.0.0.1", &[b"10.0.0.7, 203.0.113.9"], "203.0.113.9"),
            // Whoever is not trusted changes nothing.
            ("198.51.100.7", &[b"203.0.113.9"], "198.51.100.7"),
            ("198.51.100.7", &[b"10.0.0.1"], "198.51.100.7"),
            ("192.0.2.2", &[b"203.0.113.9"], "192.0.2.2"),
            // A chain of proxies, in one header or in several.
            ("192.0.2.1", &[b"203.0.113.9, 10.1.1.1 ,\t10.2.2.2"], "203.0.113.9"),
            ("192.0.2.1", &[b"203.0.113.9", b"10.1.1.1", b"10.2.2.2"], "203.0.113.9"),
            ("10.0.0.1", &[b"10.9.9.9, 10.1.1.1"], "10.9.9.9"),
            // Garbage ends the chain.
            ("10.0.0.1", &[b"203.0.113.9, unknown"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.9, unknown, 10.1.1.1"], "10.1.1.1"),
            ("10.0.0.1", &[b"203.0.113.9, \xff\xfe"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.9, 10.1.1.1 10.2.2.2"], "10.0.0.1"),
            ("10.0.0.1", &[b"203.0.113.9,, 10.1.1.1, ,"], "203.0.113.9"),
            // Ports, brackets, and one address in two spellings.
            ("10.0.0.1", &[b"203.0.113.9:4711"], "203.0.113.9"),
            ("10.0.0.1", &[b"[2001:DB9::9]:4711"], "2001:db9::9"),
            ("10.0.0.1", &[b"[2001:db9::9]"], "2001:db9::9"),
            ("2001:db8::1", &[b"2001:db9::9"], "2001:db9::9"),
            ("::ffff:10.0.0.1", &[b"::ffff:203.0.113.9"], "203.0.113.9"),
            ("172.31.0.1", &[b"203.0.113.9"], "203.0.113.9"),
        ];
        for (peer, lines, expected) in table {
            assert_eq!(client(peer, lines), expected, "{peer} {lines:?}");
        }
    }

    #[test]
    fn an_ipv6_client_has_the_whole_of_its_64_bits() {
        for (address, expected) in [
            ("192.0.2.7", "192.0.2.7"),
            ("::ffff:192.0.2.7", "192.0.2.7"),
            ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::"),
            ("2001:db8:1:3::", "2001:db8:1:3::"),
        ] {
            assert_eq!(block(address.parse().unwrap()).to_string(), expected);
        }
    }

    #[test]
    fn by_default_nobody_is_trusted() {
        let mut headers = HeaderMap::new();
        headers.insert(FORWARDED, HeaderValue::from_static("203.0.113.9"));
        for nobody in [TrustedProxies::default(), TrustedProxies::parse(" , ").unwrap()] {
            let peer = "127.0.0.1".parse().unwrap();
            assert_eq!(nobody.client(peer, &headers), peer);
        }
    }

    #[test]
    fn what_is_no_network_is_refused_with_what_it_may_be() {
        for text in ["proxy.example.com", "10.0.0.0/33", "10.0.0.1:80", "10.0.0.1;10.0.0.2", "*"] {
            let refusal = TrustedProxies::parse(text).unwrap_err();
            assert!(refusal.contains("such as 10.0.0.0/8"), "{text}: {refusal}");
        }
    }
}
