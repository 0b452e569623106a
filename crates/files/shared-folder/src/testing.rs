//! A message in ordinary memory, for tests.

use device_model::Message;
use device_model::MessageError;

pub(crate) struct Bytes {
    request: Vec<u8>,
    taken: usize,
    pub(crate) answer: Vec<u8>,
}

impl Bytes {
    pub(crate) fn new(request: Vec<u8>, room: usize) -> Self {
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
