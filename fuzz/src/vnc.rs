//! What a VNC client sends after the handshake.
//!
//! The first byte is the length of the pieces in which the rest arrives. The messages must be those that come out when it
//! arrives at once, up to the first that is none, and little may be kept.

use remote::vnc::message::ClientMessage;
use remote::vnc::message::MessageReader;
use remote::vnc::message::ProtocolError;

/// The longest message but for clipboard text: a list of 1024 encodings. Of what follows, a piece.
const MOST_KEPT: usize = 4 + 4 * 1024;

/// Executes one input.
///
/// # Panics
/// When pieces make a difference, or too much is kept.
pub fn run(data: &[u8]) {
    let Some((first, stream)) = data.split_first() else {
        return;
    };
    let pieces = messages(stream, usize::from(*first).max(1));
    assert_eq!(pieces, messages(stream, stream.len().max(1)));
}

fn messages(stream: &[u8], size: usize) -> (Vec<ClientMessage>, Option<ProtocolError>) {
    let (mut reader, mut all) = (MessageReader::new(), Vec::new());
    for piece in stream.chunks(size) {
        if let Err(error) = reader.push(piece, |message| all.push(message)) {
            return (all, Some(error));
        }
        assert!(reader.kept() <= MOST_KEPT, "{} bytes are kept", reader.kept());
    }
    (all, None)
}
