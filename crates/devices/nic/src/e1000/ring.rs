//! A ring of descriptors in guest memory.
//!
//! Spec: SDM 8254x §3.2.6 (receive), §3.4 (transmit).

/// Bytes of a descriptor.
pub(super) const DESCRIPTOR: u64 = 16;

/// A ring as its registers describe it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Ring {
    base: u64,
    len: u32,
    pub(super) head: u32,
    tail: u32,
}

impl Ring {
    /// None if there is no ring, or head and tail are not in it: the card then does nothing.
    pub(super) fn new(base: u64, bytes: u32, head: u32, tail: u32) -> Option<Self> {
        let len = bytes / 16;
        let ring = Self { base, len, head, tail };
        (head < len && tail < len).then_some(ring)
    }

    /// Descriptors that the card may use.
    pub(super) fn available(&self) -> u32 {
        match self.tail.checked_sub(self.head) {
            Some(between) => between,
            None => self.len - self.head + self.tail,
        }
    }

    pub(super) fn len(&self) -> u32 {
        self.len
    }

    /// Where the descriptor at the head is.
    pub(super) fn address(&self) -> u64 {
        self.base.wrapping_add(u64::from(self.head) * DESCRIPTOR)
    }

    /// The next one.
    pub(super) fn advance(&mut self) {
        self.head += 1;
        if self.head == self.len {
            self.head = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ring_wraps_and_is_empty_when_head_is_tail() {
        let mut ring = Ring::new(0x1000, 128, 6, 1).unwrap();
        assert_eq!((ring.available(), ring.address()), (3, 0x1060));
        ring.advance();
        ring.advance();
        assert_eq!((ring.available(), ring.address()), (1, 0x1000));
        ring.advance();
        assert_eq!(ring.available(), 0);
        assert_eq!(Ring::new(0, 128, 8, 0), None);
        assert_eq!(Ring::new(0, 0, 0, 0), None);
    }
}
