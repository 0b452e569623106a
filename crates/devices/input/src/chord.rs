//! Chords: keys that are held together, as `ctrl-alt-f2`.

use crate::Event;
use crate::Key;

/// Keys of a chord at most: no hand has more fingers.
const MOST: usize = 10;

/// Why a chord makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChordError {
    /// There is no key of this name.
    #[error("no key is called `{0}`; names are as in ctrl-alt-f2, shift-a, enter, pageup")]
    UnknownKey(String),
    /// There is nothing.
    #[error("a chord needs a key, as in ctrl-alt-f2")]
    Empty,
    /// There are too many.
    #[error("a chord of more than 10 keys")]
    TooMany,
}

/// The keys of a chord in the order in which they go down. Names are separated by `-` or `+`; a separator in the place of a name
/// is the key itself, as in `ctrl--`.
///
/// # Errors
/// [`ChordError`] where a name is unknown.
pub fn parse_chord(text: &str) -> Result<Vec<Key>, ChordError> {
    let mut keys = Vec::new();
    let mut rest = text.trim();
    while !rest.is_empty() {
        let end = rest
            .char_indices()
            .skip(1)
            .find(|(_, c)| matches!(c, '-' | '+'))
            .map_or(rest.len(), |(at, _)| at);
        // `kp+` and `kp-` end in what else is a separator.
        let end = match rest.get(..end) {
            Some("kp" | "KP") if end + 1 == rest.len() => rest.len(),
            _ => end,
        };
        let (name, after) = rest.split_at(end);
        keys.push(key_of(name)?);
        if keys.len() > MOST {
            return Err(ChordError::TooMany);
        }
        rest = after.get(1..).unwrap_or_default();
        if rest.is_empty() && !after.is_empty() {
            return Err(ChordError::UnknownKey(String::new()));
        }
    }
    if keys.is_empty() {
        return Err(ChordError::Empty);
    }
    Ok(keys)
}

fn key_of(name: &str) -> Result<Key, ChordError> {
    let alias = match name {
        "-" => "minus",
        "+" => "equal",
        "kp-" => "kpminus",
        other => other,
    };
    Key::from_name(alias).ok_or_else(|| ChordError::UnknownKey(name.to_owned()))
}

/// The events of a chord: all keys down, then up in reverse.
pub fn press(keys: &[Key]) -> impl Iterator<Item = Event> {
    let event = |down| move |key: &Key| Event::Key { key: *key, down };
    keys.iter().map(event(true)).chain(keys.iter().rev().map(event(false)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(text: &str) -> Vec<&'static str> {
        parse_chord(text).unwrap().into_iter().map(Key::name).collect()
    }

    #[test]
    fn chords_are_read_in_their_common_spellings() {
        assert_eq!(names("ctrl-alt-f2"), ["ctrl", "alt", "f2"]);
        assert_eq!(names("Ctrl+Alt+Del"), ["ctrl", "alt", "delete"]);
        assert_eq!(names("ctrl--"), ["ctrl", "minus"]);
        assert_eq!(names("-"), ["minus"]);
        assert_eq!(names("kp+"), ["kpplus"]);
        assert_eq!(names("alt-kp-"), ["alt", "kpminus"]);
        assert_eq!(names(" a "), ["a"]);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parse_chord(""), Err(ChordError::Empty));
        assert_eq!(
            parse_chord("ctrl-hyper-x"),
            Err(ChordError::UnknownKey("hyper".to_owned()))
        );
        assert!(parse_chord("ctrl-").is_err());
        assert_eq!(parse_chord("a-b-c-d-e-f-g-h-i-j-k"), Err(ChordError::TooMany));
        assert!(parse_chord("ß-ü").is_err());
    }

    #[test]
    fn keys_go_up_in_reverse() {
        let events: Vec<_> = press(&parse_chord("shift-a").unwrap())
            .map(|event| match event {
                Event::Key { key, down } => (key.name(), down),
                _ => ("", false),
            })
            .collect();
        assert_eq!(events, [("shift", true), ("a", true), ("a", false), ("shift", false)]);
    }
}
