//! A message to a file server in ordinary memory.

use device_model::Message;
use device_model::MessageError;

/// A request, and the room for its answer.
pub struct Bytes {
    request: Vec<u8>,
    taken: usize,
    /// What was answered, and zeros.
    pub answer: Vec<u8>,
}

impl Bytes {
    /// `room` bytes for the answer.
    #[must_use]
    pub fn new(request: Vec<u8>, room: usize) -> Self {
        Self {
            request,
            taken: 0,
            answer: vec![0; room],
        }
    }
}

impl Message for Bytes {
    fn left(&self) -> usize {
        self.request.len() - self.taken
    }

    fn take(&mut self, buf: &mut [u8]) -> Result<(), MessageError> {
        let end = self.taken + buf.len();
        buf.copy_from_slice(self.request.get(self.taken..end).ok_or(MessageError)?);
        self.taken = end;
        Ok(())
    }

    fn room(&self) -> usize {
        self.answer.len()
    }

    fn put(&mut self, at: usize, bytes: &[u8]) -> Result<(), MessageError> {
        let place = self.answer.get_mut(at..at + bytes.len()).ok_or(MessageError)?;
        place.copy_from_slice(bytes);
        Ok(())
    }
}
