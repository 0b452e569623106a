//! What a client is to be sent: a reply, and events up to a limit.

use std::collections::VecDeque;
use std::sync::Condvar;
use std::sync::Mutex;
use std::sync::MutexGuard;
use std::sync::PoisonError;
use std::time::Duration;
use std::time::Instant;

use serde::Serialize;

use crate::Event;

/// Events that wait for a client at most.
const MOST_EVENTS: usize = 256;

/// Lines on their way to one client. Whoever adds one never waits.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    inner: Mutex<Inner>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    lines: VecDeque<Line>,
    events: usize,
    lost: u64,
    /// The writer has a line in its hands.
    writing: bool,
    /// Nothing is added any more; what is there goes out.
    closing: bool,
    /// The client is gone.
    dead: bool,
}

#[derive(Debug)]
struct Line {
    text: Vec<u8>,
    is_event: bool,
}

/// A value as a line.
fn line(value: &impl Serialize) -> Vec<u8> {
    // Our own values have string keys and no maps that fail.
    let mut text = serde_json::to_vec(value).unwrap_or_default();
    text.push(b'\n');
    text
}

impl Outbox {
    /// Adds a reply or the greeting.
    pub(super) fn push(&self, value: &impl Serialize) {
        let text = line(value);
        let mut inner = self.lock();
        if !inner.closing && !inner.dead {
            inner.lines.push_back(Line { text, is_event: false });
            self.changed.notify_all();
        }
    }

    /// Adds an event, or counts it as lost when too many wait. False when the client is gone.
    pub(crate) fn push_event(&self, event: &Event) -> bool {
        let mut inner = self.lock();
        if inner.closing || inner.dead {
            return false;
        }
        if inner.events >= MOST_EVENTS {
            inner.lost += 1;
            return true;
        }
        if inner.lost > 0 {
            let count = std::mem::take(&mut inner.lost);
            inner.add_event(&Event::Lost { count });
        }
        inner.add_event(event);
        self.changed.notify_all();
        true
    }

    /// The next line to write; none when there will be none.
    pub(super) fn next(&self) -> Option<Vec<u8>> {
        let mut inner = self.lock();
        inner.writing = false;
        self.changed.notify_all();
        loop {
            if inner.dead {
                return None;
            }
            if let Some(line) = inner.lines.pop_front() {
                inner.events -= usize::from(line.is_event);
                inner.writing = true;
                return Some(line.text);
            }
            if inner.lost > 0 {
                let count = std::mem::take(&mut inner.lost);
                inner.add_event(&Event::Lost { count });
                continue;
            }
            if inner.closing {
                return None;
            }
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Waits until everything is written. False when the client is gone.
    pub(super) fn wait_empty(&self) -> bool {
        let mut inner = self.lock();
        while !inner.dead && !inner.is_empty() {
            inner = self.changed.wait(inner).unwrap_or_else(PoisonError::into_inner);
        }
        !inner.dead
    }

    /// The same, until `deadline` at most.
    pub(super) fn wait_empty_until(&self, deadline: Instant) {
        let mut inner = self.lock();
        while !inner.dead && !inner.is_empty() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left == Duration::ZERO {
                return;
            }
            let waited = self.changed.wait_timeout(inner, left);
            (inner, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Nothing more is added.
    pub(super) fn close(&self) {
        self.lock().closing = true;
        self.changed.notify_all();
    }

    /// The client is gone.
    pub(super) fn kill(&self) {
        let mut inner = self.lock();
        inner.dead = true;
        inner.lines.clear();
        inner.events = 0;
        self.changed.notify_all();
    }

    /// Whether nobody waits for an answer any more.
    pub(super) fn is_over(&self) -> bool {
        let inner = self.lock();
        inner.closing || inner.dead
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && !self.writing && self.lost == 0
    }

    fn add_event(&mut self, event: &Event) {
        self.lines.push_back(Line {
            text: line(event),
            is_event: true,
        });
        self.events += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reset() -> Event {
        Event::Reset { by: "guest".to_owned() }
    }

    #[test]
    fn slow_client_loses_events_and_is_told_how_many() {
        let outbox = Outbox::default();
        for _ in 0..MOST_EVENTS + 7 {
            assert!(outbox.push_event(&reset()));
        }
        outbox.push(&"reply");
        outbox.close();
        assert!(!outbox.push_event(&reset()), "closed");
        let mut lines = Vec::new();
        while let Some(line) = outbox.next() {
            lines.push(String::from_utf8(line).unwrap());
        }
        assert_eq!(lines.len(), MOST_EVENTS + 2);
        assert_eq!(lines[MOST_EVENTS], "\"reply\"\n");
        assert_eq!(lines[MOST_EVENTS + 1], "{\"event\":\"lost\",\"count\":7}\n");
    }

    #[test]
    fn empty_means_written() {
        let outbox = Outbox::default();
        outbox.push(&1);
        assert!(outbox.next().is_some());
        let soon = Instant::now() + Duration::from_millis(10);
        outbox.wait_empty_until(soon);
        assert!(Instant::now() >= soon, "the line is in the writer's hands");
        outbox.kill();
        assert!(!outbox.wait_empty());
        assert_eq!(outbox.next(), None);
    }
}
