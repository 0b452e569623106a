//! What the user types, on its way to the guest.

use std::io::IsTerminal;
use std::io::Read;
use std::sync::mpsc::Sender;

use board::SerialHost;

use crate::end::End;
use crate::escape::Action;
use crate::escape::Escape;
use crate::escape::HELP;

/// Carries standard input to `host`. Its end is not the guest's end: the guest may have all it needs.
pub(crate) fn spawn_input(host: SerialHost, ends: Sender<End>) -> std::io::Result<()> {
    let body = move || {
        let mut input = std::io::stdin();
        if input.is_terminal() {
            type_in(&mut input, &host, &ends);
        } else {
            copy_in(&mut input, &host);
        }
    };
    std::thread::Builder::new().name("serial in".to_owned()).spawn(body)?;
    Ok(())
}

/// A file or pipe: every byte counts, and waits until the guest takes it.
fn copy_in(input: &mut impl Read, host: &SerialHost) {
    let mut bytes = [0; 4096];
    while let Some(n) = read_some(input, &mut bytes) {
        if !host.write(&bytes[..n]) {
            break;
        }
    }
}

/// A keyboard: the escape must work whatever the guest does, so this never waits for the guest. What finds no room is
/// lost, as on a real line.
fn type_in(input: &mut impl Read, host: &SerialHost, ends: &Sender<End>) {
    let mut escape = Escape::default();
    let mut bytes = [0; 4096];
    while let Some(n) = read_some(input, &mut bytes) {
        let mut forward = Vec::with_capacity(n);
        for byte in &bytes[..n] {
            match escape.feed(*byte) {
                Action::Forward(byte) => forward.push(byte),
                Action::Nothing => {}
                Action::Help => eprint!("{HELP}"),
                Action::Quit => {
                    let _ = ends.send(End::Escape);
                    return;
                }
            }
        }
        host.offer(&forward);
    }
}

/// Reads at least a byte; none at the end.
fn read_some(input: &mut impl Read, bytes: &mut [u8]) -> Option<usize> {
    loop {
        match input.read(bytes) {
            Ok(0) => return None,
            Ok(n) => return Some(n),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(_) => return None,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use board::serial_wire;
    use device_model::SerialBackend;

    use super::*;

    fn drain(port: &mut impl SerialBackend) -> Vec<u8> {
        std::iter::from_fn(|| port.receive()).collect()
    }

    #[test]
    fn typed_escape_ends_and_what_came_before_is_not_sent_with_it() {
        let (mut port, host) = serial_wire();
        let (sender, ends) = mpsc::channel();
        type_in(&mut &b"ls\n"[..], &host, &sender);
        assert_eq!(drain(&mut port), b"ls\n");
        type_in(&mut &b"\x01\x01\x01x more"[..], &host, &sender);
        assert!(matches!(ends.try_recv(), Ok(End::Escape)));
        assert_eq!(drain(&mut port), b"");
    }

    #[test]
    fn piped_input_keeps_the_escape_character() {
        let (mut port, host) = serial_wire();
        copy_in(&mut &b"\x01x"[..], &host);
        assert_eq!(drain(&mut port), b"\x01x");
    }
}
