//! The far end of a serial line.

/// What a UART is connected to. Called under the UART's lock: must not block.
pub trait SerialBackend: Send {
    /// Takes a byte that the guest sent. `false` when there is no room now; the UART then offers it again later.
    fn send(&mut self, byte: u8) -> bool;

    /// The next byte for the guest, if one has arrived.
    fn receive(&mut self) -> Option<u8>;
}

/// A serial line with nothing at the other end: output is dropped.
#[derive(Clone, Copy, Debug, Default)]
pub struct NullSerial;

impl SerialBackend for NullSerial {
    fn send(&mut self, _byte: u8) -> bool {
        true
    }

    fn receive(&mut self) -> Option<u8> {
        None
    }
}
