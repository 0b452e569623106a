//! One direction of a flow: bytes that wait, and where their messages end if there are any.

use std::collections::VecDeque;

use device_model::FlowKind;

/// Bytes on their way.
#[derive(Debug)]
pub(crate) struct Lane {
    kind: FlowKind,
    bytes: VecDeque<u8>,
    /// Lengths of the messages that are complete, the first less what was taken of it.
    ends: VecDeque<u32>,
    /// Bytes of the last message, which is not.
    open: u32,
}

impl Lane {
    pub(crate) fn new(kind: FlowKind) -> Self {
        Self {
            kind,
            bytes: VecDeque::new(),
            ends: VecDeque::new(),
            open: 0,
        }
    }

    /// All bytes.
    pub(crate) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Bytes that may be taken: those of complete messages.
    pub(crate) fn ready(&self) -> usize {
        self.bytes.len() - self.open as usize
    }

    /// Bytes that may be taken at once: those of the first message.
    pub(crate) fn first(&self) -> usize {
        match self.kind {
            FlowKind::Stream => self.bytes.len(),
            FlowKind::Packets => self.ends.front().map_or(0, |len| *len as usize),
        }
    }

    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
        self.open = 0;
    }

    /// Adds bytes, with which a message ends or not. A message without bytes is none.
    pub(crate) fn push(&mut self, bytes: &[u8], end: bool) {
        self.bytes.extend(bytes);
        if self.kind == FlowKind::Stream {
            return;
        }
        self.open = self.open.saturating_add(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
        if end && self.open > 0 {
            self.ends.push_back(std::mem::take(&mut self.open));
        }
    }

    /// Adds what another has behind what this one has, and empties that.
    pub(crate) fn append(&mut self, other: &mut Self) {
        self.bytes.append(&mut other.bytes);
        if let Some(first) = other.ends.front_mut() {
            *first = first.saturating_add(std::mem::take(&mut self.open));
        }
        self.ends.append(&mut other.ends);
        self.open = self.open.saturating_add(std::mem::take(&mut other.open));
    }

    /// Takes up to `most` bytes of the first message, and whether it ends with them.
    pub(crate) fn take(&mut self, most: usize) -> (Vec<u8>, bool) {
        let len = most.min(self.first());
        (self.bytes.drain(..len).collect(), self.taken(len))
    }

    /// Forgets the first `len` bytes, which are of one message.
    pub(crate) fn skip(&mut self, len: usize) {
        self.bytes.drain(..len.min(self.bytes.len()));
        self.taken(len);
    }

    fn taken(&mut self, len: usize) -> bool {
        let Some(first) = self.ends.front_mut() else {
            return false;
        };
        *first = first.saturating_sub(u32::try_from(len).unwrap_or(u32::MAX));
        let end = *first == 0;
        if end {
            self.ends.pop_front();
        }
        end
    }

    /// The first bytes, in two pieces; none of what [`Self::first`] leaves out.
    pub(crate) fn front(&self) -> (&[u8], &[u8]) {
        let (first, second) = self.bytes.as_slices();
        let len = self.first();
        let head = first.get(..len).unwrap_or(first);
        let tail = second.get(..len - head.len()).unwrap_or(second);
        (head, tail)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stream_has_no_ends() {
        let mut lane = Lane::new(FlowKind::Stream);
        lane.push(b"ab", true);
        lane.push(b"c", false);
        assert_eq!((lane.len(), lane.ready(), lane.first()), (3, 3, 3));
        assert_eq!(lane.take(2), (b"ab".to_vec(), false));
        assert_eq!(lane.front(), (&b"c"[..], &b""[..]));
    }

    #[test]
    fn messages_are_taken_one_by_one_and_whole() {
        let mut lane = Lane::new(FlowKind::Packets);
        lane.push(b"ab", false);
        assert_eq!((lane.len(), lane.ready(), lane.first()), (2, 0, 0));
        assert_eq!(lane.take(9), (Vec::new(), false));
        lane.push(b"c", true);
        lane.push(b"de", true);
        lane.push(b"f", false);
        assert_eq!((lane.len(), lane.ready(), lane.first()), (6, 5, 3));
        assert_eq!(lane.take(2), (b"ab".to_vec(), false));
        assert_eq!(lane.take(9), (b"c".to_vec(), true));
        assert_eq!(lane.front(), (&b"de"[..], &b""[..]));
        lane.skip(2);
        assert_eq!((lane.len(), lane.ready(), lane.first()), (1, 0, 0));
        // Nothing is no message.
        let mut empty = Lane::new(FlowKind::Packets);
        empty.push(b"", true);
        assert_eq!((empty.first(), empty.take(1)), (0, (Vec::new(), false)));
    }

    #[test]
    fn what_comes_behind_goes_on_with_the_message() {
        let (mut lane, mut other) = (Lane::new(FlowKind::Packets), Lane::new(FlowKind::Packets));
        lane.push(b"ab", false);
        other.push(b"c", false);
        lane.append(&mut other);
        assert_eq!((lane.ready(), other.len()), (0, 0));
        other.push(b"d", true);
        other.push(b"e", false);
        lane.append(&mut other);
        assert_eq!((lane.ready(), lane.first(), lane.len()), (4, 4, 5));
        lane.push(b"f", true);
        assert_eq!(lane.take(9), (b"abcd".to_vec(), true));
        assert_eq!(lane.take(9), (b"ef".to_vec(), true));
        lane.push(b"g", true);
        lane.clear();
        assert_eq!((lane.len(), lane.ready()), (0, 0));
    }
}
