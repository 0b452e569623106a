//! VNC authentication: a challenge that the client encrypts with DES under the password.
//!
//! Only eight characters of a password count, and DES is weak: it keeps out those who come by, not those who listen.
//!
//! Spec: RFC 6143 §7.2.2.

use std::fmt;

use des::Des;
use des::cipher::BlockEncrypt;
use des::cipher::KeyInit;

/// Characters that count.
const KEY: usize = 8;
/// Bytes of a challenge.
pub(super) const CHALLENGE: usize = 16;

/// A password, as the key that it makes.
#[derive(Clone, PartialEq, Eq)]
pub struct Password([u8; KEY]);

/// A password that the protocol cannot carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PasswordError {
    /// It is empty.
    #[error("the VNC password is empty")]
    Empty,
    /// It is longer than what counts.
    #[error("the VNC password has more than 8 characters; the protocol looks at 8 only")]
    TooLong,
    /// It has other characters than clients can send.
    #[error("the VNC password has characters other than printable ASCII")]
    NotAscii,
}

impl Password {
    /// A password of one to eight printable ASCII characters.
    ///
    /// # Errors
    /// [`PasswordError`] for others: part of them would count for nothing.
    pub fn new(text: &str) -> Result<Self, PasswordError> {
        if text.is_empty() {
            return Err(PasswordError::Empty);
        }
        if text.bytes().any(|byte| !(0x20..=0x7E).contains(&byte)) {
            return Err(PasswordError::NotAscii);
        }
        if text.len() > KEY {
            return Err(PasswordError::TooLong);
        }
        let mut key = [0; KEY];
        for (to, from) in key.iter_mut().zip(text.bytes()) {
            // DES keys are read from the other end of each byte.
            *to = from.reverse_bits();
        }
        Ok(Self(key))
    }

    /// What a client that knows the password answers.
    pub(super) fn response(&self, challenge: &[u8; CHALLENGE]) -> [u8; CHALLENGE] {
        let cipher = Des::new(&self.0.into());
        let mut response = *challenge;
        let (blocks, _) = response.as_chunks_mut::<KEY>();
        for block in blocks {
            cipher.encrypt_block(block.into());
        }
        response
    }

    /// Whether an answer is right, in a time that does not tell how much of it is.
    pub(super) fn accepts(&self, challenge: &[u8; CHALLENGE], response: &[u8; CHALLENGE]) -> bool {
        let wanted = self.response(challenge);
        wanted.iter().zip(response).fold(0, |differs, (a, b)| differs | (a ^ b)) == 0
    }
}

impl fmt::Debug for Password {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Password(..)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn response_is_des_with_reversed_key_bits() {
        // Key 0123456789ABCDEFh of the DES worked example, whose bytes are mirrored here.
        let password = Password([0x13, 0x34, 0x57, 0x79, 0x9B, 0xBC, 0xDF, 0xF1]);
        let mut challenge = [0; 16];
        challenge[..8].copy_from_slice(&[0x01, 0x23, 0x45, 0x67, 0x89, 0xAB, 0xCD, 0xEF]);
        let response = password.response(&challenge);
        assert_eq!(response[..8], [0x85, 0xE8, 0x13, 0x54, 0x0F, 0x0A, 0xB4, 0x05]);
        assert!(password.accepts(&challenge, &response));
        assert!(!password.accepts(&challenge, &challenge));
        assert_eq!(Password::new("a").unwrap().0[0], 0x86);
    }

    #[test]
    fn passwords_that_would_be_cut_are_refused() {
        assert_eq!(Password::new(""), Err(PasswordError::Empty));
        assert_eq!(Password::new("123456789"), Err(PasswordError::TooLong));
        assert_eq!(Password::new("pässword"), Err(PasswordError::NotAscii));
        assert!(Password::new("12345678").is_ok());
    }
}
