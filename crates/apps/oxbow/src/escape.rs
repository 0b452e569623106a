//! The terminal's escape: Ctrl-A and a key, out of what the user types.

/// Ctrl-A.
const PREFIX: u8 = 0x01;

/// What `Ctrl-A h` shows.
pub(crate) const HELP: &str = "
Ctrl-A x       end the machine
Ctrl-A h       this help
Ctrl-A Ctrl-A  send Ctrl-A to the guest
";

/// What to do about the bytes so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Action {
    /// A byte for the guest.
    Forward(u8),
    /// Nothing yet, or a key without meaning.
    Nothing,
    /// End the machine.
    Quit,
    /// Show the help.
    Help,
}

/// The filter between keyboard and guest.
#[derive(Debug, Default)]
pub(crate) struct Escape {
    prefixed: bool,
}

impl Escape {
    /// Takes the next byte from the keyboard.
    pub(crate) fn feed(&mut self, byte: u8) -> Action {
        if !std::mem::take(&mut self.prefixed) {
            self.prefixed = byte == PREFIX;
            return if self.prefixed {
                Action::Nothing
            } else {
                Action::Forward(byte)
            };
        }
        match byte {
            PREFIX => Action::Forward(PREFIX),
            b'x' | b'X' => Action::Quit,
            b'h' | b'H' | b'?' => Action::Help,
            _ => Action::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_prefixed_keys_are_commands() {
        let mut escape = Escape::default();
        let mut feed = |byte| escape.feed(byte);
        assert_eq!(feed(b'x'), Action::Forward(b'x'));
        assert_eq!(feed(3), Action::Forward(3));
        assert_eq!([feed(1), feed(b'x')], [Action::Nothing, Action::Quit]);
        assert_eq!([feed(1), feed(b'h')], [Action::Nothing, Action::Help]);
        assert_eq!([feed(1), feed(1)], [Action::Nothing, Action::Forward(1)]);
        assert_eq!(
            [feed(1), feed(b'z'), feed(b'x')],
            [Action::Nothing, Action::Nothing, Action::Forward(b'x')]
        );
    }
}
