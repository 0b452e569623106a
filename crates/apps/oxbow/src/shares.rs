//! Shared folders on the command line: `TAG=PATH`, then what differs from the usual.

use spec::ShareConfig;

use crate::drives::split;

/// A shared folder.
pub(crate) fn parse_share(text: &str) -> Result<ShareConfig, String> {
    let (share, options) = split(text);
    let Some((tag, path)) = share
        .split_once('=')
        .filter(|(tag, path)| !tag.is_empty() && !path.is_empty())
    else {
        return Err("write TAG=PATH: what the guest mounts, and the folder, such as src=/home/me/src".to_owned());
    };
    let mut share = ShareConfig {
        tag: tag.to_owned(),
        path: path.into(),
        ..ShareConfig::default()
    };
    for (name, value) in options {
        match (name.as_str(), value) {
            ("ro", None) => share.read_only = true,
            ("writeback", None) => share.writeback = true,
            ("proto", Some(value)) => share.protocol = value.parse()?,
            ("cache", Some(value)) => share.cache = value.parse()?,
            (name, _) => {
                return Err(format!(
                    "`{name}` is no option of a share; there are proto=, cache=, writeback and ro"
                ));
            }
        }
    }
    Ok(share)
}

#[cfg(test)]
mod tests {
    use spec::ShareCache;
    use spec::ShareProtocol;

    use super::*;

    #[test]
    fn options_follow_the_folder() {
        let share = parse_share("src=/a,,b=c,ro,proto=virtiofs,cache=always,writeback").unwrap();
        let expected = ShareConfig {
            tag: "src".to_owned(),
            path: "/a,b=c".into(),
            read_only: true,
            protocol: ShareProtocol::Virtiofs,
            cache: ShareCache::Always,
            writeback: true,
        };
        assert_eq!(share, expected);
        assert_eq!(parse_share("a=b").unwrap().cache, ShareCache::Auto);
    }

    #[test]
    fn what_makes_no_sense_is_told_with_what_does() {
        for (text, part) in [
            ("", "TAG=PATH"),
            ("/srv", "TAG=PATH"),
            ("a=", "TAG=PATH"),
            ("=b", "TAG=PATH"),
            ("a=b,rw", "there are proto="),
            ("a=b,ro=1", "`ro` is no option"),
            ("a=b,proto=nfs", "virtiofs"),
            ("a=b,cache=some", "auto, never, always"),
        ] {
            let error = parse_share(text).unwrap_err();
            assert!(error.contains(part), "{text}: {error}");
        }
    }
}
