//! How long a thread was ready to run and the host's processors were others'.
//!
//! Spec: Linux sched-stats.rst (`/proc/<pid>/schedstat`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

thread_local! {
    /// Stays open: asking is one system call.
    static SCHEDSTAT: Option<File> = File::open("/proc/thread-self/schedstat").ok();
}

/// The time that the calling thread has waited for a processor since it was made; nothing where the host does not count it.
pub(crate) fn by_others() -> Duration {
    SCHEDSTAT.with(|file| {
        let mut text = [0; 64];
        let read = file
            .as_ref()
            .and_then(|file| file.read_at(&mut text, 0).ok())
            .unwrap_or(0);
        text.get(..read).and_then(waited).unwrap_or_default()
    })
}

/// The second of three numbers: time on a processor, time in its queue (both in ns), stays on it.
fn waited(text: &[u8]) -> Option<Duration> {
    let text = std::str::from_utf8(text).ok()?;
    let ns = text.split_whitespace().nth(1)?.parse().ok()?;
    Some(Duration::from_nanos(ns))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn second_number_is_the_time_in_the_queue() {
        assert_eq!(waited(b"1234 5678 9\n"), Some(Duration::from_nanos(5_678)));
        for text in [&b"1234"[..], b"", b"1 x 3", b"\xff \xff"] {
            assert_eq!(waited(text), None);
        }
    }

    #[test]
    fn time_never_goes_back_on_a_thread() {
        let first = by_others();
        std::thread::yield_now();
        assert!(by_others() >= first);
    }
}
