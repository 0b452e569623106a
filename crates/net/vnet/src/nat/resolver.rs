//! Which name servers the host asks, followed while it changes.
//!
//! Spec: resolv.conf(5).

use std::fs;
use std::net::IpAddr;
use std::net::Ipv4Addr;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;
use std::time::Instant;
use std::time::SystemTime;

const PORT: u16 = 53;
/// How long what was read is believed without a look at the file.
const FRESH: Duration = Duration::from_secs(1);
/// Servers that are used at most, as by the C library.
const SERVERS: usize = 3;

/// The host's name servers.
#[derive(Debug)]
pub(super) struct Resolver {
    fixed: Option<SocketAddr>,
    path: PathBuf,
    looked: Option<Instant>,
    modified: Option<SystemTime>,
    servers: Vec<SocketAddr>,
    domain: Option<String>,
    /// Which server is asked now.
    turn: usize,
}

impl Resolver {
    /// Asks `fixed`, or those that the file at `path` names.
    pub(super) fn new(fixed: Option<SocketAddr>, path: PathBuf) -> Self {
        Self {
            fixed,
            path,
            looked: None,
            modified: None,
            servers: Vec::new(),
            domain: None,
            turn: 0,
        }
    }

    fn look(&mut self) {
        let fresh = self.looked.is_some_and(|at| at.elapsed() < FRESH);
        if fresh {
            return;
        }
        self.looked = Some(Instant::now());
        let modified = fs::metadata(&self.path).and_then(|data| data.modified()).ok();
        if modified.is_some() && modified == self.modified {
            return;
        }
        self.modified = modified;
        let text = fs::read_to_string(&self.path).unwrap_or_default();
        (self.servers, self.domain) = parse(&text);
        self.turn = 0;
    }

    /// The server to ask.
    pub(super) fn server(&mut self) -> Option<SocketAddr> {
        if self.fixed.is_some() {
            return self.fixed;
        }
        self.look();
        let turn = self.turn.checked_rem(self.servers.len())?;
        self.servers.get(turn).copied()
    }

    /// The server has not answered: another has its turn.
    pub(super) fn next(&mut self) {
        self.turn = self.turn.wrapping_add(1);
    }

    /// The host's domain.
    pub(super) fn domain(&mut self) -> Option<String> {
        self.look();
        self.domain.clone()
    }
}

/// Servers and domain of a file's text. Without servers there is one on this host (resolv.conf(5)).
fn parse(text: &str) -> (Vec<SocketAddr>, Option<String>) {
    let (mut servers, mut domain) = (Vec::new(), None);
    for line in text.lines() {
        let mut words = line.split_whitespace();
        match (words.next(), words.next()) {
            (Some("nameserver"), Some(address)) => {
                // A scope such as `%eth0` belongs to addresses that only this link knows.
                let address = address.split('%').next().unwrap_or(address);
                if let Ok(address) = address.parse::<IpAddr>()
                    && servers.len() < SERVERS
                {
                    servers.push(SocketAddr::new(address, PORT));
                }
            }
            (Some("domain" | "search"), Some(name)) if name.len() < 200 => domain = Some(name.to_owned()),
            _ => {}
        }
    }
    if servers.is_empty() {
        servers.push(SocketAddr::new(Ipv4Addr::LOCALHOST.into(), PORT));
    }
    (servers, domain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_is_read_again_when_it_has_changed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("resolv.conf");
        fs::write(
            &path,
            "# comment\nsearch example.org x\nnameserver 192.0.2.1\nnameserver fe80::1%eth0\n",
        )
        .unwrap();
        let mut resolver = Resolver::new(None, path.clone());
        assert_eq!(resolver.server(), Some("192.0.2.1:53".parse().unwrap()));
        assert_eq!(resolver.domain().as_deref(), Some("example.org"));
        resolver.next();
        assert_eq!(resolver.server(), Some("[fe80::1]:53".parse().unwrap()));
        fs::write(&path, "nameserver 192.0.2.9\n").unwrap();
        let later = SystemTime::now() + Duration::from_secs(5);
        fs::File::options()
            .append(true)
            .open(&path)
            .unwrap()
            .set_modified(later)
            .unwrap();
        resolver.looked = None;
        assert_eq!(resolver.server(), Some("192.0.2.9:53".parse().unwrap()));
    }

    #[test]
    fn host_without_servers_asks_itself_and_a_fixed_one_is_never_left() {
        assert_eq!(parse("nameserver x\n").0, ["127.0.0.1:53".parse().unwrap()]);
        let fixed: SocketAddr = "192.0.2.5:5353".parse().unwrap();
        let mut resolver = Resolver::new(Some(fixed), "/nonexistent".into());
        resolver.next();
        assert_eq!(resolver.server(), Some(fixed));
    }
}
