//! A socket device, and where its sockets are.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// The context identifiers that guests may have.
const CIDS: std::ops::RangeInclusive<u32> = 3..=u32::MAX - 1;

/// A virtio socket device.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VsockConfig {
    /// Context identifier that the guest finds itself by: 3 to 4294967294.
    pub cid: u32,
    /// Unix socket that programs of the host reach the guest by; those that the guest reaches are beside it, with `_` and
    /// their port behind the name. None: there are no programs.
    #[serde(default)]
    pub socket: Option<PathBuf>,
}

impl VsockConfig {
    /// What is wrong with it.
    #[must_use]
    pub fn problem(&self) -> Option<String> {
        if !CIDS.contains(&self.cid) {
            return Some(format!(
                "cid {} is not between {} and {}",
                self.cid,
                CIDS.start(),
                CIDS.end()
            ));
        }
        let empty = self.socket.as_ref().is_some_and(|path| path.as_os_str().is_empty());
        empty.then(|| "the socket has no path".to_owned())
    }
}

impl FromStr for VsockConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (first, socket) = match text.split_once(",socket=") {
            Some((first, socket)) => (first, Some(socket.into())),
            None => (text, None),
        };
        let cid = first.strip_prefix("cid=");
        let cid = cid.ok_or_else(|| format!("write cid=N,socket=PATH, not `{text}`"))?;
        let cid = cid.parse().map_err(|_| format!("cid `{cid}` is not a number"))?;
        let config = Self { cid, socket };
        match config.problem() {
            Some(what) => Err(what),
            None => Ok(config),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn device_is_a_number_and_a_path() {
        let config: VsockConfig = "cid=3,socket=/run/a,b.sock".parse().unwrap();
        assert_eq!((config.cid, config.socket), (3, Some("/run/a,b.sock".into())));
        assert_eq!("cid=4".parse(), Ok(VsockConfig { cid: 4, socket: None }));
        for (text, what) in [
            ("cid=2,socket=/a", "between 3"),
            ("cid=x,socket=/a", "not a number"),
            ("cid=3,socket=", "no path"),
            ("3", "cid=N,socket=PATH"),
            ("cid=3,socket", "not a number"),
            ("socket=/a,cid=3", "cid=N,socket=PATH"),
        ] {
            assert!(text.parse::<VsockConfig>().unwrap_err().contains(what), "{text}");
        }
    }
}
