//! What the subcommands print: sizes for people, JSON for programs, a bar on a terminal.

use std::io::IsTerminal;
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;

use anyhow::Context;
use disk_image::BlockError;
use disk_image::Progress;
use indicatif::ProgressBar;
use indicatif::ProgressStyle;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::flag;

use crate::completions::print;
use crate::failure::Failure;

const UNITS: [&str; 5] = ["KiB", "MiB", "GiB", "TiB", "PiB"];

/// `20 GiB`, `1.5 MiB`, `512 bytes`.
pub(crate) fn size(bytes: u64) -> String {
    let shift = (1..=UNITS.len()).rev().find(|&unit| bytes >> (10 * unit) > 0);
    let Some(unit) = shift else {
        return format!("{bytes} bytes");
    };
    let name = UNITS.get(unit - 1).unwrap_or(&"");
    // Tenths, rounded down: a disk is never shown larger than it is.
    let tenths = (u128::from(bytes) * 10) >> (10 * unit);
    match tenths % 10 {
        0 => format!("{} {name}", tenths / 10),
        tenth => format!("{}.{tenth} {name}", tenths / 10),
    }
}

/// Prints lines, or JSON where that is asked for.
pub(super) fn answer(json: bool, value: &serde_json::Value, lines: &str) -> Result<ExitCode, Failure> {
    if !json {
        return print(lines.as_bytes());
    }
    let text = serde_json::to_string_pretty(value).context("cannot write JSON")?;
    print(format!("{text}\n").as_bytes())
}

/// A bar on standard error, where that is a terminal. It is gone when this is dropped.
///
/// As long as it lives, a signal ends the operation in good order; the second one ends the process.
pub(super) struct Bar {
    bar: ProgressBar,
    /// The signal that came; 0 for none.
    signal: Arc<AtomicUsize>,
}

impl Bar {
    pub(super) fn new(what: &str, json: bool) -> Result<Self, Failure> {
        let bar = if json || !std::io::stderr().is_terminal() {
            ProgressBar::hidden()
        } else {
            let style = ProgressStyle::with_template("{msg} {wide_bar} {percent}% {binary_bytes_per_sec} {eta}");
            let bar = ProgressBar::new(0).with_message(what.to_owned());
            style.map_or(bar.clone(), |style| bar.with_style(style))
        };
        let signal = Arc::new(AtomicUsize::new(0));
        let second = Arc::new(AtomicBool::new(false));
        for number in [SIGINT, SIGTERM, SIGHUP] {
            flag::register_conditional_default(number, Arc::clone(&second)).map_err(Failure::host)?;
            flag::register(number, Arc::clone(&second)).map_err(Failure::host)?;
            let value = usize::try_from(number).unwrap_or_default();
            flag::register_usize(number, Arc::clone(&signal), value).map_err(Failure::host)?;
        }
        Ok(Self { bar, signal })
    }

    pub(super) fn show(&self, progress: Progress) -> Result<(), BlockError> {
        self.bar.set_length(progress.total);
        self.bar.set_position(progress.done);
        match u8::try_from(self.signal.load(Ordering::Relaxed)) {
            Ok(0) | Err(_) => Ok(()),
            Ok(signal) => Err(BlockError::Stopped { signal }),
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_at_most_one_decimal_and_are_never_rounded_up() {
        for (bytes, text) in [
            (0, "0 bytes"),
            (1023, "1023 bytes"),
            (1024, "1 KiB"),
            (1536, "1.5 KiB"),
            (20 << 30, "20 GiB"),
            ((1 << 30) - 1, "1023.9 MiB"),
            (u64::MAX, "16383.9 PiB"),
        ] {
            assert_eq!(size(bytes), text);
        }
    }
}
