//! Rust source as far as the checks of length need it: what is code, and where functions begin and end.
//!
//! Comments, strings and character literals are blanked first; the rest is then plain bracket counting.

/// A function and the number of its lines that hold code.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(crate) struct Function {
    pub(crate) name: String,
    /// Counted from one.
    pub(crate) line: usize,
    pub(crate) code_lines: usize,
}

/// The text with comments and the contents of literals replaced by blanks; line ends stay.
pub(crate) fn code_of(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut code = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let end = literal_or_comment(bytes, at);
        match end {
            Some(end) => {
                // A literal counts as code, a comment does not.
                let mark = if bytes[at] == b'/' { b' ' } else { b'"' };
                code.push(mark);
                code.extend(
                    bytes[at + 1..end]
                        .iter()
                        .map(|&byte| if byte == b'\n' { b'\n' } else { b' ' }),
                );
                at = end;
            }
            None => {
                code.push(bytes[at]);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&code).into_owned()
}

/// The end of the comment or literal that begins here.
fn literal_or_comment(bytes: &[u8], at: usize) -> Option<usize> {
    let rest = &bytes[at..];
    let after_word = at > 0 && is_word(bytes[at - 1]);
    match rest {
        [b'/', b'/', ..] => Some(find(bytes, at, b"\n").unwrap_or(bytes.len())),
        [b'/', b'*', ..] => Some(end_of_block_comment(bytes, at)),
        [b'"', ..] => Some(end_of_quoted(bytes, at + 1, b'"')),
        [b'\'', b'\\', ..] => Some(end_of_quoted(bytes, at + 1, b'\'')),
        [b'\'', ..] => end_of_character(bytes, at),
        [b'r', b'"' | b'#', ..] if !after_word => end_of_raw(bytes, at + 1),
        [b'b' | b'c', b'r', b'"' | b'#', ..] if !after_word => end_of_raw(bytes, at + 2),
        _ => None,
    }
}

fn is_word(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || byte == b'_'
}

fn find(bytes: &[u8], from: usize, what: &[u8]) -> Option<usize> {
    let found = bytes[from..].windows(what.len()).position(|window| window == what)?;
    Some(from + found)
}

fn end_of_block_comment(bytes: &[u8], at: usize) -> usize {
    let mut depth = 0;
    let mut at = at;
    while at < bytes.len() {
        if bytes[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if bytes[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                return at;
            }
        } else {
            at += 1;
        }
    }
    bytes.len()
}

fn end_of_quoted(bytes: &[u8], mut at: usize, quote: u8) -> usize {
    while at < bytes.len() {
        match bytes[at] {
            b'\\' => at += 2,
            byte if byte == quote => return at + 1,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// `'x'` is a character, `'x` without a second quote is a lifetime or a label.
fn end_of_character(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 2;
    while end < bytes.len() && bytes[end] & 0xc0 == 0x80 {
        end += 1;
    }
    (bytes.get(end) == Some(&b'\'')).then_some(end + 1)
}

fn end_of_raw(bytes: &[u8], at: usize) -> Option<usize> {
    let hashes = bytes[at..].iter().take_while(|&&byte| byte == b'#').count();
    if bytes.get(at + hashes) != Some(&b'"') {
        return None;
    }
    let mut mark = vec![b'"'];
    mark.resize(1 + hashes, b'#');
    let end = find(bytes, at + hashes + 1, &mark).map_or(bytes.len(), |found| found + mark.len());
    Some(end)
}

/// Blanks the modules of tests in text from `code_of`.
pub(crate) fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    let mut from = 0;
    while let Some(found) = out[from..].find("#[cfg(test)]") {
        let start = from + found;
        let Some(end) = end_of_item(&out, start + "#[cfg(test)]".len()) else {
            break;
        };
        let blank: String = out[start..end]
            .chars()
            .map(|c| if c == '\n' { '\n' } else { ' ' })
            .collect();
        out.replace_range(start..end, &blank);
        from = start + blank.len();
    }
    out
}

/// The end of the item that begins at or after `at`: its closing brace or its semicolon.
fn end_of_item(code: &str, at: usize) -> Option<usize> {
    let mut depth = 0usize;
    let mut braces = 0usize;
    for (offset, byte) in code.bytes().enumerate().skip(at) {
        match byte {
            b'(' | b'[' => depth += 1,
            b')' | b']' => depth = depth.saturating_sub(1),
            b'{' => braces += 1,
            b'}' => {
                braces = braces.checked_sub(1)?;
                if braces == 0 && depth == 0 {
                    return Some(offset + 1);
                }
            }
            b';' if depth == 0 && braces == 0 => return Some(offset + 1),
            _ => {}
        }
    }
    None
}

/// The number of lines that are not blank.
pub(crate) fn code_lines(code: &str) -> usize {
    code.lines().filter(|line| !line.trim().is_empty()).count()
}

/// The functions that have a body in text from `code_of`; those inside others are counted on their own too.
pub(crate) fn functions(code: &str) -> Vec<Function> {
    let bytes = code.as_bytes();
    let mut found = Vec::new();
    let mut at = 0;
    while let Some(start) = find(bytes, at, b"fn ") {
        at = start + 3;
        let begins_word = start == 0 || !is_word(bytes[start - 1]);
        let rest = code[at..].trim_start();
        let name: String = rest.chars().take_while(|&c| c == '_' || c.is_alphanumeric()).collect();
        if !begins_word || name.is_empty() {
            continue;
        }
        let Some(end) = end_of_item(code, at) else {
            continue;
        };
        if !code[..end].ends_with('}') {
            continue;
        }
        found.push(Function {
            name,
            line: code[..start].matches('\n').count() + 1,
            code_lines: code_lines(&code[start..end]),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn code_of_blanks_comments_and_literals_only() {
        let code = code_of("let a = \"// no {\"; // yes }\nlet b = 'x'; /* { /* */ } */ let c = '\\'';\n");
        assert!(!code.contains(['{', '}']) && !code.contains("//"), "{code}");
        assert!(code.contains("let a") && code.contains("let b") && code.contains("let c"));
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn code_of_knows_lifetimes_labels_and_raw_strings() {
        let code = code_of("fn f<'a>(x: &'a str) -> char { 'outer: loop { break 'outer; } '}' }");
        assert_eq!(code.matches('{').count(), 2);
        assert_eq!(code.matches('}').count(), 2);
        let code = code_of("let a = r#\"{\"{\"#; let b = br\"{\\\"; for r in x { }");
        assert_eq!(code.matches('{').count(), 1, "{code}");
        assert_eq!(code_of("let number = r#type;"), "let number = r#type;");
    }

    #[test]
    fn without_tests_blanks_whole_modules_and_single_items() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n    fn b() {}\n}\n#[cfg(test)]\nuse x;\nfn c() {}\n";
        let code = without_tests(text);
        let names: Vec<String> = functions(&code).into_iter().map(|function| function.name).collect();
        assert_eq!(names, ["a", "c"]);
        assert_eq!(code.lines().count(), text.lines().count());
        assert_eq!(code_lines(&code), 2);
    }

    #[test]
    fn functions_are_measured_without_blank_lines() {
        let text = "trait T { fn no_body(&self) -> [u8; 4]; }\nfn f(g: fn (u8) -> u8) {\n\n    g(1);\n    // why\n}\n";
        let found = functions(&code_of(text));
        let expected = Function {
            name: "f".to_owned(),
            line: 2,
            code_lines: 3,
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn functions_with_array_types_and_nested_functions_end_where_they_end() {
        let text = "fn outer(a: [u8; 2]) -> [u8; 2] {\n    fn inner() {\n    }\n    a\n}\nfn last() {}\n";
        let found: Vec<(String, usize)> = functions(text)
            .into_iter()
            .map(|function| (function.name, function.code_lines))
            .collect();
        let expected = [("outer", 5), ("inner", 2), ("last", 1)].map(|(name, lines)| (name.to_owned(), lines));
        assert_eq!(found, expected);
    }
}
