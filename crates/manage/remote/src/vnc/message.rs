//! Messages from clients. Bytes go in, messages come out; nothing is believed and nothing large is kept.
//!
//! Spec: RFC 6143 §7.5; rfbproto.rst "SetDesktopSize", "QEMU Client Message".

use display::Rect;

use super::pixel::PixelFormat;

/// Encodings that a client may list; the protocol has far fewer.
const MOST_ENCODINGS: u16 = 1024;
/// Clipboard text that is skipped; more is an attack.
const MOST_TEXT: u32 = 1 << 20;

/// What is wrong with a client.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProtocolError {
    /// Message type that was not agreed on.
    #[error("unknown message {0}")]
    UnknownMessage(u8),
    /// Pixels that cannot be.
    #[error("impossible pixel format")]
    PixelFormat,
    /// More encodings than there are.
    #[error("{0} encodings")]
    TooManyEncodings(u16),
    /// Clipboard text beyond measure.
    #[error("{0} bytes of clipboard text")]
    TooMuchText(u32),
}

/// What a client says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientMessage {
    /// Pixels are to look like this.
    SetPixelFormat(PixelFormat),
    /// Encodings that it knows, best first.
    SetEncodings(Vec<i32>),
    /// It wants a picture.
    UpdateRequest {
        /// What changed only.
        incremental: bool,
        /// Of this part.
        rect: Rect,
    },
    /// A key by what it means.
    Key {
        /// Down or up.
        down: bool,
        /// X11 keysym.
        keysym: u32,
    },
    /// A key by where it is, too.
    ExtendedKey {
        /// Down or up.
        down: bool,
        /// X11 keysym.
        keysym: u32,
        /// Scan code of set 1; with bit 7 for the prefix E0h.
        keycode: u32,
    },
    /// Where the pointer is, and its buttons from bit 0 on: left, middle, right, wheel up, down, left, right.
    Pointer {
        /// Buttons held.
        buttons: u8,
        /// Column.
        x: u16,
        /// Row.
        y: u16,
    },
    /// Clipboard text, which is dropped: bytes that follow.
    CutText(u32),
    /// It wants another size.
    SetDesktopSize {
        /// Columns.
        width: u16,
        /// Rows.
        height: u16,
    },
}

/// Takes a message from the front of `bytes`; its length too. `None` when it is not complete. Of [`ClientMessage::CutText`]
/// only the head is taken.
///
/// # Errors
/// [`ProtocolError`] when no message begins like that.
pub fn parse(bytes: &[u8]) -> Result<Option<(ClientMessage, usize)>, ProtocolError> {
    let Some((kind, rest)) = bytes.split_first() else {
        return Ok(None);
    };
    let mut fields = Fields(rest);
    let message = match kind {
        0 => pixel_format(&mut fields)?,
        2 => encodings(&mut fields)?,
        3 => update_request(&mut fields),
        4 => key(&mut fields),
        5 => pointer(&mut fields),
        6 => cut_text(&mut fields)?,
        251 => desktop_size(&mut fields),
        255 => qemu(&mut fields)?,
        other => return Err(ProtocolError::UnknownMessage(*other)),
    };
    Ok(message.map(|message| (message, bytes.len() - fields.0.len())))
}

/// Takes messages out of a stream that comes in pieces. Keeps one incomplete message at most, and no clipboard text.
#[derive(Debug, Default)]
pub struct MessageReader {
    waiting: Vec<u8>,
    /// Bytes of the clipboard that are still to come.
    skip: usize,
}

impl MessageReader {
    /// A reader at the start of a stream.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Bytes that are kept.
    #[must_use]
    pub fn kept(&self) -> usize {
        self.waiting.len()
    }

    /// Takes the next bytes, and gives `take` the messages that they complete.
    ///
    /// # Errors
    /// [`ProtocolError`] for a message that is none; the stream makes no sense from there on.
    pub fn push(&mut self, bytes: &[u8], mut take: impl FnMut(ClientMessage)) -> Result<(), ProtocolError> {
        self.waiting.extend(bytes);
        let mut done = 0;
        loop {
            let skipped = self.skip.min(self.waiting.len() - done);
            self.skip -= skipped;
            done += skipped;
            if self.skip > 0 {
                break;
            }
            let Some((message, len)) = parse(self.waiting.get(done..).unwrap_or_default())? else {
                break;
            };
            done += len;
            if let ClientMessage::CutText(text) = message {
                self.skip = usize::try_from(text).unwrap_or(usize::MAX);
            }
            take(message);
        }
        self.waiting.drain(..done);
        Ok(())
    }
}

/// What is left of the bytes.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*taken)
    }

    fn u8(&mut self) -> Option<u8> {
        self.take().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }
}

fn pixel_format(fields: &mut Fields<'_>) -> Result<Option<ClientMessage>, ProtocolError> {
    let (Some([_, _, _]), Some(format)) = (fields.take(), fields.take()) else {
        return Ok(None);
    };
    PixelFormat::parse(&format).map(|format| Some(ClientMessage::SetPixelFormat(format)))
}

fn encodings(fields: &mut Fields<'_>) -> Result<Option<ClientMessage>, ProtocolError> {
    let (Some(_), Some(count)) = (fields.u8(), fields.u16()) else {
        return Ok(None);
    };
    if count > MOST_ENCODINGS {
        return Err(ProtocolError::TooManyEncodings(count));
    }
    let all = (0..count).map(|_| fields.take().map(i32::from_be_bytes));
    Ok(all.collect::<Option<_>>().map(ClientMessage::SetEncodings))
}

fn update_request(fields: &mut Fields<'_>) -> Option<ClientMessage> {
    let incremental = fields.u8()? != 0;
    let [x, y, width, height] = [fields.u16()?, fields.u16()?, fields.u16()?, fields.u16()?].map(u32::from);
    let rect = Rect::new(x, y, width, height);
    Some(ClientMessage::UpdateRequest { incremental, rect })
}

fn key(fields: &mut Fields<'_>) -> Option<ClientMessage> {
    let down = fields.u8()? != 0;
    fields.u16()?;
    let keysym = fields.u32()?;
    Some(ClientMessage::Key { down, keysym })
}

fn pointer(fields: &mut Fields<'_>) -> Option<ClientMessage> {
    let (buttons, x, y) = (fields.u8()?, fields.u16()?, fields.u16()?);
    Some(ClientMessage::Pointer { buttons, x, y })
}

fn cut_text(fields: &mut Fields<'_>) -> Result<Option<ClientMessage>, ProtocolError> {
    let (Some([_, _, _]), Some(len)) = (fields.take(), fields.u32()) else {
        return Ok(None);
    };
    if len > MOST_TEXT {
        return Err(ProtocolError::TooMuchText(len));
    }
    Ok(Some(ClientMessage::CutText(len)))
}

fn desktop_size(fields: &mut Fields<'_>) -> Option<ClientMessage> {
    fields.u8()?;
    let (width, height, screens, _) = (fields.u16()?, fields.u16()?, fields.u8()?, fields.u8()?);
    for _ in 0..screens {
        fields.take::<16>()?;
    }
    Some(ClientMessage::SetDesktopSize { width, height })
}

fn qemu(fields: &mut Fields<'_>) -> Result<Option<ClientMessage>, ProtocolError> {
    let Some(kind) = fields.u8() else {
        return Ok(None);
    };
    if kind != 0 {
        return Err(ProtocolError::UnknownMessage(255));
    }
    let extended = |fields: &mut Fields<'_>| {
        let (down, keysym, keycode) = (fields.u16()? != 0, fields.u32()?, fields.u32()?);
        Some(ClientMessage::ExtendedKey { down, keysym, keycode })
    };
    Ok(extended(fields))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn whole(bytes: &[u8]) -> ClientMessage {
        let (message, len) = parse(bytes).unwrap().unwrap();
        assert_eq!(len, bytes.len());
        for cut in 0..len {
            assert_eq!(parse(&bytes[..cut]), Ok(None), "{cut} bytes of {message:?}");
        }
        message
    }

    #[test]
    fn messages_are_taken_whole_or_not_at_all() {
        let mut bytes = vec![0, 0, 0, 0];
        bytes.extend(PixelFormat::OURS.to_bytes());
        assert_eq!(whole(&bytes), ClientMessage::SetPixelFormat(PixelFormat::OURS));
        assert_eq!(
            whole(&[2, 0, 0, 2, 0, 0, 0, 7, 255, 255, 255, 33]),
            ClientMessage::SetEncodings(vec![7, -223])
        );
        assert_eq!(
            whole(&[3, 1, 0, 1, 0, 2, 0, 3, 0, 4]),
            ClientMessage::UpdateRequest {
                incremental: true,
                rect: Rect::new(1, 2, 3, 4)
            }
        );
        assert_eq!(
            whole(&[4, 1, 0, 0, 0, 0, 0, 97]),
            ClientMessage::Key { down: true, keysym: 97 }
        );
        assert_eq!(
            whole(&[5, 4, 1, 0, 0, 9]),
            ClientMessage::Pointer {
                buttons: 4,
                x: 256,
                y: 9
            }
        );
        assert_eq!(whole(&[6, 0, 0, 0, 0, 0, 0, 5]), ClientMessage::CutText(5));
        let mut bytes = vec![251, 0, 4, 0, 3, 0, 1, 0];
        bytes.extend([0; 16]);
        assert_eq!(
            whole(&bytes),
            ClientMessage::SetDesktopSize {
                width: 1024,
                height: 768
            }
        );
        assert_eq!(
            whole(&[255, 0, 0, 1, 0, 0, 0, 97, 0, 0, 0, 0x9D]),
            ClientMessage::ExtendedKey {
                down: true,
                keysym: 97,
                keycode: 0x9D
            }
        );
    }

    #[test]
    fn nonsense_is_told_from_the_first_bytes() {
        assert_eq!(parse(&[99]), Err(ProtocolError::UnknownMessage(99)));
        assert_eq!(parse(&[255, 9]), Err(ProtocolError::UnknownMessage(255)));
        assert_eq!(parse(&[2, 0, 0xFF, 0xFF]), Err(ProtocolError::TooManyEncodings(65535)));
        assert!(parse(&[6, 0, 0, 0, 0xFF, 0, 0, 0]).is_err());
    }

    #[test]
    fn stream_is_the_same_in_any_pieces() {
        let mut stream = vec![6, 0, 0, 0, 0, 0, 0, 9];
        stream.extend([2; 9]);
        stream.extend([4, 1, 0, 0, 0, 0, 0, 97, 5, 1, 0, 2, 0, 3, 2, 0, 0, 1, 0, 0, 0, 16]);
        let messages = |size: usize| {
            let (mut reader, mut all) = (MessageReader::new(), Vec::new());
            for piece in stream.chunks(size) {
                reader.push(piece, |message| all.push(message)).unwrap();
            }
            assert_eq!(reader.kept(), 0);
            all
        };
        let whole = messages(stream.len());
        assert_eq!(whole.len(), 4);
        assert!((1..stream.len()).all(|size| messages(size) == whole));
    }

    proptest! {
        #[test]
        fn any_bytes_are_taken_in_bounds(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            if let Ok(Some((_, len))) = parse(&bytes) {
                prop_assert!(len > 0 && len <= bytes.len());
            }
        }
    }
}
