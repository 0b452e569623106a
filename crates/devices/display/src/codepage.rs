//! Code page 437, the character set of the PC's text modes, as Unicode.
//!
//! Spec: IBM Personal System/2 Hardware Interface Technical Reference (1990), "Characters, Keystrokes, and Colors".

/// 0 to 1Fh, and 7Fh: characters that are controls elsewhere. Zero shows as a blank.
#[rustfmt::skip]
const LOW: [char; 32] = [
    ' ', '☺', '☻', '♥', '♦', '♣', '♠', '•', '◘', '○', '◙', '♂', '♀', '♪', '♫', '☼',
    '►', '◄', '↕', '‼', '¶', '§', '▬', '↨', '↑', '↓', '→', '←', '∟', '↔', '▲', '▼',
];

#[rustfmt::skip]
const HIGH: [char; 128] = [
    'Ç', 'ü', 'é', 'â', 'ä', 'à', 'å', 'ç', 'ê', 'ë', 'è', 'ï', 'î', 'ì', 'Ä', 'Å',
    'É', 'æ', 'Æ', 'ô', 'ö', 'ò', 'û', 'ù', 'ÿ', 'Ö', 'Ü', '¢', '£', '¥', '₧', 'ƒ',
    'á', 'í', 'ó', 'ú', 'ñ', 'Ñ', 'ª', 'º', '¿', '⌐', '¬', '½', '¼', '¡', '«', '»',
    '░', '▒', '▓', '│', '┤', '╡', '╢', '╖', '╕', '╣', '║', '╗', '╝', '╜', '╛', '┐',
    '└', '┴', '┬', '├', '─', '┼', '╞', '╟', '╚', '╔', '╩', '╦', '╠', '═', '╬', '╧',
    '╨', '╤', '╥', '╙', '╘', '╒', '╓', '╫', '╪', '┘', '┌', '█', '▄', '▌', '▐', '▀',
    'α', 'ß', 'Γ', 'π', 'Σ', 'σ', 'µ', 'τ', 'Φ', 'Θ', 'Ω', 'δ', '∞', 'φ', 'ε', '∩',
    '≡', '±', '≥', '≤', '⌠', '⌡', '÷', '≈', '°', '∙', '·', '√', 'ⁿ', '²', '■', ' ',
];

/// The character of a code.
pub(crate) fn unicode(code: u8) -> char {
    match code {
        0x7F => '⌂',
        0x20..=0x7E => char::from(code),
        0x80.. => HIGH.get(usize::from(code - 0x80)).copied().unwrap_or(' '),
        _ => LOW.get(usize::from(code)).copied().unwrap_or(' '),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn landmarks_are_in_their_places() {
        let text: String = [0x41, 0xC9, 0xCD, 0xBB, 0xDB, 0xE1, 0x7F, 0x01, 0xF8]
            .map(unicode)
            .iter()
            .collect();
        assert_eq!(text, "A╔═╗█ß⌂☺°");
    }
}
