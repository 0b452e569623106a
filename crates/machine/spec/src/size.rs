//! Sizes as people write them: `512M`, `2G`, `64KiB`, `1048576`.
//!
//! Suffixes are powers of 1024 in upper or lower case, with or without `B` or `iB`. A number without a suffix counts
//! bytes. Fractions are refused: they hide what is meant.

use std::fmt;
use std::str::FromStr;

use serde::Deserialize;
use serde::Deserializer;
use serde::Serialize;
use serde::Serializer;

const UNITS: [(&str, u32); 4] = [("K", 10), ("M", 20), ("G", 30), ("T", 40)];

/// A number of bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Size(u64);

impl Size {
    /// `bytes` bytes.
    #[must_use]
    pub const fn from_bytes(bytes: u64) -> Self {
        Self(bytes)
    }

    /// `mib` times 1 MiB.
    #[must_use]
    pub const fn from_mib(mib: u64) -> Self {
        Self(mib << 20)
    }

    /// The number of bytes.
    #[must_use]
    pub const fn bytes(self) -> u64 {
        self.0
    }
}

/// Why a text is not a size.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SizeError {
    /// Neither digits nor a known suffix.
    #[error("`{0}` is not a size; write a number with K, M, G or T, such as 512M")]
    Syntax(String),
    /// More than 64 bits of bytes.
    #[error("`{0}` is too large")]
    Range(String),
}

impl FromStr for Size {
    type Err = SizeError;

    fn from_str(text: &str) -> Result<Self, SizeError> {
        let syntax = || SizeError::Syntax(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed.len() - trimmed.trim_start_matches(|c: char| c.is_ascii_digit()).len();
        let (number, suffix) = trimmed.split_at(digits);
        if number.is_empty() {
            return Err(syntax());
        }
        let number: u64 = number.parse().map_err(|_| SizeError::Range(text.to_owned()))?;
        let shift = shift_of(suffix.trim()).ok_or_else(syntax)?;
        let bytes = number
            .checked_mul(1 << shift)
            .ok_or_else(|| SizeError::Range(text.to_owned()))?;
        Ok(Self(bytes))
    }
}

fn shift_of(suffix: &str) -> Option<u32> {
    let upper = suffix.to_ascii_uppercase();
    if upper.is_empty() || upper == "B" {
        return Some(0);
    }
    let (unit, rest) = upper.split_at_checked(1)?;
    let (_, shift) = UNITS.iter().find(|(name, _)| *name == unit)?;
    matches!(rest, "" | "B" | "IB").then_some(*shift)
}

impl fmt::Display for Size {
    /// The shortest exact form, which parses back to the same size.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let whole = |(_, shift): &&(&str, u32)| self.0 != 0 && self.0.is_multiple_of(1 << shift);
        match UNITS.iter().rev().find(whole) {
            Some((unit, shift)) => write!(f, "{}{unit}", self.0 >> shift),
            None => write!(f, "{}", self.0),
        }
    }
}

impl Serialize for Size {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Size {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Written {
            Bytes(u64),
            Text(String),
        }
        match Written::deserialize(deserializer)? {
            Written::Bytes(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse().map_err(serde::de::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parse_takes_every_written_form() {
        for (text, bytes) in [
            ("0", 0),
            ("4096", 4096),
            ("512M", 512 << 20),
            ("2g", 2 << 30),
            ("64KiB", 64 << 10),
            (" 1 TB ", 1 << 40),
            ("7b", 7),
        ] {
            assert_eq!(text.parse(), Ok(Size(bytes)), "{text}");
        }
    }

    #[test]
    fn parse_refuses_what_is_not_a_size() {
        for text in ["", "M", "12X", "1.5G", "-1", "1GM", "5 apples", "0x10", "1Ki B", "é"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Syntax(_))), "{text}");
        }
        for text in ["99999999999999999999", "17000000T"] {
            assert!(matches!(text.parse::<Size>(), Err(SizeError::Range(_))), "{text}");
        }
    }

    #[test]
    fn display_parses_back_to_the_same_size() {
        for bytes in [0, 1, 1023, 1024, 1025, 1 << 20, 3 << 29, 1 << 30, u64::MAX] {
            assert_eq!(Size(bytes).to_string().parse(), Ok(Size(bytes)));
        }
        assert_eq!(Size(3 << 29).to_string(), "1536M");
    }

    #[test]
    fn serde_takes_numbers_and_text_and_writes_text() {
        assert_eq!(serde_json::to_string(&Size::from_mib(512)).unwrap(), "\"512M\"");
        assert_eq!(serde_json::from_str::<Size>("\"512M\"").unwrap(), Size::from_mib(512));
        assert_eq!(serde_json::from_str::<Size>("4096").unwrap(), Size(4096));
        assert!(serde_json::from_str::<Size>("\"much\"").is_err());
    }
}
