//! Signals that end the machine.

use std::sync::mpsc::Sender;

use signal_hook::consts::SIGCONT;
use signal_hook::consts::SIGHUP;
use signal_hook::consts::SIGINT;
use signal_hook::consts::SIGTERM;
use signal_hook::iterator::Signals;

use crate::end::End;
use crate::terminal;

/// Reports SIGINT, SIGTERM and SIGHUP from now on.
pub(crate) fn watch(ends: Sender<End>) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP, SIGCONT])?;
    let body = move || {
        for signal in signals.forever() {
            match u8::try_from(signal) {
                _ if signal == SIGCONT => terminal::enter_again(),
                Ok(number) => drop(ends.send(End::Signal(number))),
                Err(_) => {}
            }
        }
    };
    std::thread::Builder::new().name("signals".to_owned()).spawn(body)?;
    Ok(())
}
