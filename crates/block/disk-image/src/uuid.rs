//! Universally unique identifiers, as images carry them.

use std::fmt;

use serde::Serialize;
use serde::Serializer;

/// 16 bytes as they are in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A random one (version 4). Zero only when the host has no random numbers.
    #[must_use]
    pub fn random() -> Self {
        let mut bytes = [0; 16];
        // The kernel gives up to 256 bytes at once, or nothing.
        let _ = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty());
        let [.., b7, b8, _, _, _, _, _, _, _] = &mut bytes;
        // Little-endian fields: the version is in the high byte of the third one.
        *b7 = *b7 & 0x0f | 0x40;
        *b8 = *b8 & 0x3f | 0x80;
        Self(bytes)
    }

    /// The identifier that `text` is, as it is displayed.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text
            .strip_prefix('{')
            .map_or(text, |rest| rest.strip_suffix('}').unwrap_or(rest));
        let dashes = [8, 13, 18, 23].iter().all(|&at| text.as_bytes().get(at) == Some(&b'-'));
        let digits: Vec<u8> = text.bytes().filter(|byte| byte.is_ascii_hexdigit()).collect();
        if text.len() != 36 || !dashes || digits.len() != 32 {
            return None;
        }
        let mut bytes = [0; 16];
        for (byte, pair) in bytes.iter_mut().zip(digits.as_chunks::<2>().0) {
            *byte = u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok()?;
        }
        let [a, b, c, d, e, f, g, h, ..] = &mut bytes;
        std::mem::swap(a, d);
        std::mem::swap(b, c);
        std::mem::swap(e, f);
        std::mem::swap(g, h);
        Some(Self(bytes))
    }

    /// No identifier.
    #[must_use]
    pub fn is_zero(&self) -> bool {
        self.0 == [0; 16]
    }
}

impl fmt::Display for Uuid {
    /// With the first three fields little-endian, as VirtualBox and Windows do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g, h, i, rest @ ..] = self.0;
        write!(f, "{d:02x}{c:02x}{b:02x}{a:02x}-{g:02x}{e:02x}-{i:02x}{h:02x}-")?;
        for (index, byte) in rest.iter().enumerate() {
            let dash = if index == 2 { "-" } else { "" };
            write!(f, "{dash}{byte:02x}")?;
        }
        Ok(())
    }
}

impl Serialize for Uuid {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_has_the_fields_little_endian() {
        let bytes = std::array::from_fn(|i| i as u8);
        assert_eq!(Uuid(bytes).to_string(), "03020100-0504-0706-0809-0a0b0c0d0e0f");
        assert_ne!(Uuid::random(), Uuid::random());
    }

    #[test]
    fn parse_takes_what_is_displayed_and_nothing_else() {
        let uuid = Uuid::random();
        assert_eq!(Uuid::parse(&uuid.to_string()), Some(uuid));
        assert_eq!(
            Uuid::parse(&format!("{{{}}}", uuid.to_string().to_uppercase())),
            Some(uuid)
        );
        for text in [
            "",
            "0",
            "03020100-0504-0706-0809-0a0b0c0d0e0",
            "03020100-0504-0706-080900a0b0c0d0e0f",
            "é3020100-0504-0706-0809-0a0b0c0d0e0",
        ] {
            assert_eq!(Uuid::parse(text), None, "{text}");
        }
    }
}
