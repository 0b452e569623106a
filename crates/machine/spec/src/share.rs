//! Folders of the host that the guest mounts.

use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use serde::Serialize;

/// Shares of a machine at most.
pub const SHARES: usize = 16;
/// Bytes of a tag at most.
const TAG: usize = 36;

/// What the guest speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareProtocol {
    /// virtio-fs: FUSE messages.
    #[default]
    Virtiofs,
    /// 9P2000.L.
    #[serde(rename = "9p")]
    NineP,
}

impl ShareProtocol {
    const ALL: [Self; 2] = [Self::Virtiofs, Self::NineP];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Virtiofs => "virtiofs",
            Self::NineP => "9p",
        }
    }
}

impl FromStr for ShareProtocol {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::devices::named(text, Self::ALL, Self::name, "protocol")
    }
}

/// How long a guest may go without asking for what it has seen.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ShareCache {
    /// A second: what changes on the host is seen soon.
    #[default]
    Auto,
    /// Not at all; there are no shared mappings then.
    Never,
    /// For ever: only the guest changes the folder.
    Always,
}

impl ShareCache {
    const ALL: [Self; 3] = [Self::Auto, Self::Never, Self::Always];

    /// What is written for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::Never => "never",
            Self::Always => "always",
        }
    }
}

impl FromStr for ShareCache {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        crate::devices::named(text, Self::ALL, Self::name, "cache policy")
    }
}

/// A folder of the host that the guest mounts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct ShareConfig {
    /// What the guest mounts it by: 1 to 36 bytes.
    pub tag: String,
    /// The folder.
    pub path: PathBuf,
    /// The guest cannot change anything in it.
    pub read_only: bool,
    /// What the guest speaks.
    pub protocol: ShareProtocol,
    /// How long it may go without asking. Virtiofs only.
    pub cache: ShareCache,
    /// It may keep for a while what is written, since nobody else writes. Virtiofs only.
    pub writeback: bool,
}

impl ShareConfig {
    /// What is wrong with it by itself.
    pub(crate) fn problem(&self) -> Option<String> {
        let printable = self.tag.chars().all(|char| !char.is_control() && char != ',');
        if self.tag.is_empty() || self.tag.len() > TAG || !printable {
            return Some(format!(
                "tag `{}` is not 1 to {TAG} printable bytes without a comma",
                self.tag
            ));
        }
        if self.path.as_os_str().is_empty() {
            return Some("names no folder".to_owned());
        }
        if self.protocol == ShareProtocol::NineP && (self.cache != ShareCache::Auto || self.writeback) {
            let what = "the guest of a 9p share chooses its cache when it mounts (`-o cache=`)";
            return Some(format!("{what}; leave out cache= and writeback"));
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::MachineSpec;

    fn share(tag: &str) -> ShareConfig {
        ShareConfig {
            tag: tag.to_owned(),
            path: "/srv".into(),
            ..ShareConfig::default()
        }
    }

    fn problems(shares: &[ShareConfig]) -> String {
        let mut spec = MachineSpec::default();
        spec.devices.shares = shares.to_vec();
        spec.validate()
            .map_or_else(|error| error.to_string(), |()| String::new())
    }

    #[test]
    fn tags_are_short_and_differ() {
        assert_eq!(problems(&[share("a"), share(&"b".repeat(36))]), "");
        for tag in ["", "a,b", "a\n", &"b".repeat(37)] {
            assert!(problems(&[share(tag)]).contains("not 1 to 36 printable"), "{tag}");
        }
        let twice = problems(&[share("a"), share("b"), share("a")]);
        assert!(twice.contains("devices.shares[2]: the tag `a` is taken"), "{twice}");
        let many: Vec<_> = (0..17).map(|number| share(&number.to_string())).collect();
        assert!(problems(&many).contains("17 shares are more than 16"));
    }

    #[test]
    fn a_9p_guest_has_its_own_cache() {
        let plan9 = ShareConfig {
            protocol: ShareProtocol::NineP,
            ..share("a")
        };
        assert_eq!(problems(std::slice::from_ref(&plan9)), "");
        let cached = ShareConfig {
            cache: ShareCache::Always,
            ..plan9.clone()
        };
        let written = ShareConfig {
            writeback: true,
            ..plan9
        };
        for share in [cached, written] {
            assert!(problems(&[share]).contains("leave out cache="));
        }
    }

    #[test]
    fn protocols_are_written_as_on_the_command_line() {
        for protocol in ShareProtocol::ALL {
            assert_eq!(protocol.name().parse(), Ok(protocol));
            let text = serde_json::to_string(&protocol).unwrap();
            assert_eq!(text, format!("\"{}\"", protocol.name()));
        }
    }
}
