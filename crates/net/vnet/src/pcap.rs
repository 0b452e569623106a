//! Capture files of frames: the classic pcap format, with nanoseconds.
//!
//! Each record is written at once, so that a file is whole whenever somebody looks at it. Unfinished frames are captured as if
//! a card had finished them, long segments in one piece.
//!
//! Spec: draft-ietf-opsawg-pcap-04 (file header, records).

use std::fs::File;
use std::io;
use std::io::Write;
use std::path::Path;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use device_model::Frame;
use device_model::net::Checksum;
use device_model::net::FRAME_MAX;

use crate::offload::fill_checksum;

/// Nanoseconds, in the writer's byte order.
const MAGIC: u32 = 0xa1b2_3c4d;
const VERSION: (u16, u16) = (2, 4);
const LINKTYPE_ETHERNET: u32 = 1;

/// A capture file. Ports that share one write into it in the order in which frames pass.
pub struct Capture {
    /// None once a write has failed.
    file: Mutex<Option<Box<dyn Write + Send>>>,
}

impl Capture {
    /// Makes the file, or empties one that is there.
    ///
    /// # Errors
    /// What the system says to that.
    pub fn create(path: &Path) -> io::Result<Self> {
        Self::new(Box::new(File::create(path)?))
    }

    /// Captures to `file`.
    ///
    /// # Errors
    /// When its header cannot be written.
    pub fn new(mut file: Box<dyn Write + Send>) -> io::Result<Self> {
        let mut header = Vec::with_capacity(24);
        header.extend(MAGIC.to_le_bytes());
        header.extend(VERSION.0.to_le_bytes());
        header.extend(VERSION.1.to_le_bytes());
        header.extend([0; 8]);
        header.extend(snap_len().to_le_bytes());
        header.extend(LINKTYPE_ETHERNET.to_le_bytes());
        file.write_all(&header)?;
        let file = Mutex::new(Some(file));
        Ok(Self { file })
    }

    /// Writes a frame that passes now. After the first failure nothing more is written.
    pub(crate) fn record(&self, frame: &Frame) {
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(out) = file.as_mut() else { return };
        if let Err(error) = out.write_all(&record(frame)) {
            tracing::warn!(%error, "the capture ends: its file cannot be written");
            *file = None;
        }
    }
}

fn snap_len() -> u32 {
    u32::try_from(FRAME_MAX).unwrap_or(u32::MAX)
}

fn record(frame: &Frame) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    // The field is of 32 bits until 2106.
    let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
    let len = u32::try_from(frame.bytes.len()).unwrap_or(u32::MAX).min(snap_len());
    let mut out = Vec::with_capacity(16 + frame.bytes.len());
    out.extend(seconds.to_le_bytes());
    out.extend(now.subsec_nanos().to_le_bytes());
    out.extend(len.to_le_bytes());
    out.extend(len.to_le_bytes());
    if matches!(frame.offload.checksum, Checksum::Missing { .. }) {
        let mut finished = frame.clone();
        // One that cannot be finished is shown as it is.
        let _ = fill_checksum(&mut finished);
        out.extend(finished.bytes.iter().take(FRAME_MAX));
    } else {
        out.extend(frame.bytes.iter().take(FRAME_MAX));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_has_header_and_records() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.pcap");
        let capture = Capture::create(&path).unwrap();
        capture.record(&Frame::new(vec![7; 60]));
        capture.record(&Frame::new(vec![8; 99]));
        let bytes = std::fs::read(&path).unwrap();
        assert_eq!(bytes.len(), 24 + 16 + 60 + 16 + 99);
        assert_eq!(bytes[..8], [0x4d, 0x3c, 0xb2, 0xa1, 2, 0, 4, 0]);
        assert_eq!(bytes[20..24], [1, 0, 0, 0]);
        assert_eq!(bytes[32..40], [60, 0, 0, 0, 60, 0, 0, 0]);
        assert_eq!(bytes[40..100], [7; 60]);
        assert_eq!(bytes[116..], [8; 99]);
    }

    #[test]
    fn failure_ends_the_capture_and_nothing_else() {
        struct Full(usize);
        impl Write for Full {
            fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
                self.0 = self.0.checked_sub(1).ok_or(io::ErrorKind::StorageFull)?;
                Ok(bytes.len())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let capture = Capture::new(Box::new(Full(1))).unwrap();
        capture.record(&Frame::new(vec![0; 60]));
        capture.record(&Frame::new(vec![0; 60]));
        assert!(capture.file.lock().unwrap().is_none());
    }
}
