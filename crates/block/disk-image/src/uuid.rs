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
}
