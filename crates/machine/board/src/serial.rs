//! The wire between a UART and the host: two bounded queues, so that neither a slow terminal nor a slow guest makes the
//! other wait under a lock.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;

use device_model::SerialBackend;

use crate::PollRequest;

/// Bytes from the guest that may wait for the host: some screens full.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// Bytes for the guest that may wait: more than a hasty typist, or a pasted page.
const INPUT_LIMIT: usize = 64 * 1024;

#[derive(Debug, Default)]
struct Wire {
    output: VecDeque<u8>,
    input: VecDeque<u8>,
    /// The machine ends: what the UART still holds finds room.
    last_call: bool,
    /// The guest's end is gone: what is queued is the last.
    guest_gone: bool,
    /// The host's end reads no more: output is dropped.
    host_gone: bool,
    /// The UART was refused a byte since the host last read.
    refused: bool,
    /// Somebody sleeps on `changed`.
    reader_waits: bool,
    writer_waits: bool,
    poll: Option<PollRequest>,
}

impl Wire {
    /// Queues what there is room for, and tells the UART; returns how many bytes that were.
    fn take_input(&mut self, bytes: &[u8]) -> usize {
        let room = INPUT_LIMIT.saturating_sub(self.input.len()).min(bytes.len());
        self.input.extend(bytes.iter().take(room));
        if room > 0
            && let Some(poll) = &self.poll
        {
            poll.raise();
        }
        room
    }

    fn close_guest(&mut self, changed: &Condvar) {
        self.guest_gone = true;
        self.poll = None;
        changed.notify_all();
    }
}

#[derive(Debug, Default)]
struct Shared {
    wire: Mutex<Wire>,
    changed: Condvar,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Wire> {
        self.wire.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The UART's end.
#[derive(Debug)]
pub struct SerialPort {
    shared: Arc<Shared>,
}

/// The host's end. Clones share the wire: usually one thread reads and another writes.
#[derive(Clone, Debug)]
pub struct SerialHost {
    shared: Arc<Shared>,
}

/// A new wire with its two ends.
#[must_use]
pub fn serial_wire() -> (SerialPort, SerialHost) {
    let shared = Arc::new(Shared::default());
    let host = SerialHost {
        shared: Arc::clone(&shared),
    };
    (SerialPort { shared }, host)
}

impl SerialPort {
    /// Sets whom to tell of input and of room. Returns what ends the wire when the machine ends.
    pub(crate) fn connect(&self, poll: PollRequest) -> SerialEnd {
        self.shared.lock().poll = Some(poll);
        SerialEnd {
            shared: Arc::clone(&self.shared),
        }
    }
}

/// Ends the wire when the machine ends, with nothing lost.
#[derive(Debug)]
pub(crate) struct SerialEnd {
    shared: Arc<Shared>,
}

impl SerialEnd {
    /// From now on everything finds room: the few bytes that the UART holds are to follow.
    pub(crate) fn last_call(&self) {
        self.shared.lock().last_call = true;
    }

    /// Nothing more follows: the host's reads end once what is queued has been read.
    pub(crate) fn close(&self) {
        self.shared.lock().close_guest(&self.shared.changed);
    }
}

impl SerialBackend for SerialPort {
    fn send(&mut self, byte: u8) -> bool {
        let mut wire = self.shared.lock();
        if wire.host_gone {
            return true;
        }
        if wire.output.len() >= OUTPUT_LIMIT && !wire.last_call {
            wire.refused = true;
            return false;
        }
        wire.output.push_back(byte);
        if wire.reader_waits {
            wire.reader_waits = false;
            self.shared.changed.notify_all();
        }
        true
    }

    fn receive(&mut self) -> Option<u8> {
        let mut wire = self.shared.lock();
        let byte = wire.input.pop_front()?;
        if wire.writer_waits && wire.input.len() <= INPUT_LIMIT / 2 {
            wire.writer_waits = false;
            self.shared.changed.notify_all();
        }
        Some(byte)
    }
}

impl Drop for SerialPort {
    fn drop(&mut self) {
        self.shared.lock().close_guest(&self.shared.changed);
    }
}

impl SerialHost {
    /// Waits for output of the guest and appends all of it to `out`. False when the machine has ended and everything has
    /// been read.
    pub fn read(&self, out: &mut Vec<u8>) -> bool {
        let mut wire = self.shared.lock();
        loop {
            if !wire.output.is_empty() {
                let (a, b) = wire.output.as_slices();
                out.extend_from_slice(a);
                out.extend_from_slice(b);
                wire.output.clear();
                if std::mem::take(&mut wire.refused)
                    && let Some(poll) = &wire.poll
                {
                    poll.raise();
                }
                return true;
            }
            if wire.guest_gone || wire.host_gone {
                return false;
            }
            wire.reader_waits = true;
            wire = self.shared.changed.wait(wire).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Queues `bytes` for the guest and waits while there is no room. False when an end is gone.
    pub fn write(&self, mut bytes: &[u8]) -> bool {
        let mut wire = self.shared.lock();
        loop {
            if wire.guest_gone || wire.host_gone {
                return false;
            }
            bytes = bytes.split_at(wire.take_input(bytes)).1;
            if bytes.is_empty() {
                return true;
            }
            wire.writer_waits = true;
            wire = self.shared.changed.wait(wire).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Queues as many of `bytes` for the guest as there is room for; the others are lost.
    pub fn offer(&self, bytes: &[u8]) {
        self.shared.lock().take_input(bytes);
    }

    /// No more output is wanted: the guest's is dropped from now on, and whoever waits is let go.
    pub fn close(&self) {
        let mut wire = self.shared.lock();
        wire.host_gone = true;
        wire.output.clear();
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn output_queue_is_bounded_and_nothing_is_lost() {
        let (mut port, host) = serial_wire();
        let taken = (0..OUTPUT_LIMIT + 5).filter(|i| port.send(*i as u8)).count();
        assert_eq!(taken, OUTPUT_LIMIT);
        let mut out = Vec::new();
        assert!(host.read(&mut out));
        assert_eq!(out.len(), OUTPUT_LIMIT);
        assert_eq!(out[..4], [0, 1, 2, 3]);
        assert!(port.send(9));
        drop(port);
        out.clear();
        assert!(host.read(&mut out));
        assert_eq!(out, [9]);
        assert!(!host.read(&mut out));
    }

    #[test]
    fn long_input_waits_for_room_and_arrives_in_order() {
        let (mut port, host) = serial_wire();
        let bytes: Vec<u8> = (0..INPUT_LIMIT * 3).map(|i| (i % 251) as u8).collect();
        let sent = bytes.clone();
        let writer = std::thread::spawn(move || host.write(&sent));
        let mut got = Vec::new();
        while got.len() < bytes.len() {
            match port.receive() {
                Some(byte) => got.push(byte),
                None => std::thread::yield_now(),
            }
        }
        assert!(writer.join().unwrap());
        assert_eq!(got, bytes);
    }

    #[test]
    fn closed_host_swallows_output_and_frees_waiters() {
        let (mut port, host) = serial_wire();
        let reader = host.clone();
        let thread = std::thread::spawn(move || reader.read(&mut Vec::new()));
        host.close();
        assert!(!thread.join().unwrap());
        assert!((0..OUTPUT_LIMIT * 2).all(|_| port.send(0)));
        assert!(!host.write(b"x"));
    }
}
