//! `cargo xtask size`: files and functions that became too long, and the form of every source file.
//!
//! Lines of code are counted: no blank lines, no comments, no tests. Beyond the soft limits there is a warning, beyond
//! the hard ones an error, unless `xtask/size-exceptions.txt` gives the reason. An exception that is not needed any
//! more is an error too.

use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::bail;

use crate::arguments::Arguments;
use crate::source;
use crate::workspace;

const FILE_SOFT: usize = 600;
const FILE_HARD: usize = 1000;
const FUNCTION_SOFT: usize = 60;
const FUNCTION_HARD: usize = 120;

const EXCEPTIONS: &str = "xtask/size-exceptions.txt";
const FOLDERS: [&str; 3] = ["crates", "fuzz", "xtask"];

/// What the check found.
#[derive(Debug, Default, Eq, PartialEq)]
pub(crate) struct Findings {
    pub(crate) wrong: Vec<String>,
    pub(crate) warnings: Vec<String>,
}

/// A line of the list of exceptions: what may be long. The reason is for its readers.
#[derive(Debug, Eq, PartialEq)]
struct Exception {
    what: String,
    used: bool,
}

pub(crate) fn main(arguments: Arguments) -> anyhow::Result<()> {
    arguments.end()?;
    let findings = check()?;
    for line in &findings.warnings {
        println!("warning: {line}");
    }
    for line in &findings.wrong {
        eprintln!("{line}");
    }
    if !findings.wrong.is_empty() {
        bail!("{} mistakes", findings.wrong.len());
    }
    Ok(())
}

/// Checks all source files.
pub(crate) fn check() -> anyhow::Result<Findings> {
    let root = workspace::root();
    let mut exceptions = read_exceptions(&std::fs::read_to_string(root.join(EXCEPTIONS))?)?;
    let mut files = Vec::new();
    for folder in FOLDERS {
        collect(&root.join(folder), &mut files)?;
    }
    let mut findings = Findings::default();
    for path in &files {
        let shown = path.strip_prefix(&root).unwrap_or(path).display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| shown.clone())?;
        check_file(&shown, &text, &mut exceptions, &mut findings);
    }
    for exception in exceptions.iter().filter(|exception| !exception.used) {
        findings
            .wrong
            .push(format!("{EXCEPTIONS}: {} needs no exception", exception.what));
    }
    Ok(findings)
}

/// `path: reason` or `path fn name: reason`; `#` begins a comment.
fn read_exceptions(text: &str) -> anyhow::Result<Vec<Exception>> {
    let mut exceptions = Vec::new();
    for line in text
        .lines()
        .map(str::trim)
        .filter(|line| !line.is_empty() && !line.starts_with('#'))
    {
        match line.split_once(": ") {
            Some((what, reason)) if !reason.trim().is_empty() => exceptions.push(Exception {
                what: what.to_owned(),
                used: false,
            }),
            _ => bail!("{EXCEPTIONS}: no reason in: {line}"),
        }
    }
    Ok(exceptions)
}

/// All Rust files below a folder, which may not exist.
fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    if !dir.is_dir() {
        return Ok(());
    }
    let mut entries: Vec<PathBuf> = std::fs::read_dir(dir)?
        .map(|entry| Ok(entry?.path()))
        .collect::<std::io::Result<_>>()?;
    entries.sort();
    for path in entries {
        if path.is_dir() && !path.ends_with("target") {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

fn check_file(shown: &str, text: &str, exceptions: &mut [Exception], findings: &mut Findings) {
    if !text.starts_with("//! ") {
        findings
            .wrong
            .push(format!("{shown}: the first line does not say what this is (`//! ...`)"));
    }
    if !text.ends_with('\n') || text.ends_with("\n\n") {
        findings
            .wrong
            .push(format!("{shown}: ends without exactly one line end"));
    }
    if shown.ends_with("/mod.rs") {
        findings
            .wrong
            .push(format!("{shown}: modules are called after themselves, not mod.rs"));
    }
    if is_test(shown) {
        return;
    }
    let code = source::without_tests(&source::code_of(text));
    let lines = source::code_lines(&code);
    judge(
        shown.to_owned(),
        shown,
        lines,
        (FILE_SOFT, FILE_HARD),
        exceptions,
        findings,
    );
    for function in source::functions(&code) {
        let key = format!("{shown} fn {}", function.name);
        let place = format!("{shown}:{}: fn {}", function.line, function.name);
        let limits = (FUNCTION_SOFT, FUNCTION_HARD);
        judge(key, &place, function.code_lines, limits, exceptions, findings);
    }
}

/// Tests in files of their own may be as long as they are.
fn is_test(shown: &str) -> bool {
    shown.ends_with("/tests.rs") || shown.split('/').any(|folder| folder == "tests")
}

fn judge(
    key: String,
    place: &str,
    lines: usize,
    (soft, hard): (usize, usize),
    exceptions: &mut [Exception],
    findings: &mut Findings,
) {
    let message = format!("{place} has {lines} lines of code");
    if lines <= soft {
        return;
    }
    if let Some(exception) = exceptions.iter_mut().find(|exception| exception.what == key) {
        exception.used = true;
    } else if lines > hard {
        findings.wrong.push(format!("{message}, more than {hard}"));
    } else {
        findings.warnings.push(format!("{message}, more than {soft}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(shown: &str, text: &str, exceptions: &mut [Exception]) -> Findings {
        let mut findings = Findings::default();
        check_file(shown, text, exceptions, &mut findings);
        findings
    }

    fn function(lines: usize) -> String {
        format!("//! Text.\nfn long() {{\n{}}}\n", "    f();\n".repeat(lines - 2))
    }

    #[test]
    fn function_limits_are_inclusive() {
        assert_eq!(check("a.rs", &function(FUNCTION_SOFT), &mut []), Findings::default());
        assert_eq!(check("a.rs", &function(FUNCTION_SOFT + 1), &mut []).warnings.len(), 1);
        assert_eq!(check("a.rs", &function(FUNCTION_HARD), &mut []).wrong.len(), 0);
        let wrong = check("a.rs", &function(FUNCTION_HARD + 1), &mut []).wrong;
        assert_eq!(wrong, ["a.rs:2: fn long has 121 lines of code, more than 120"]);
    }

    #[test]
    fn exception_silences_and_is_marked_as_used() {
        let mut exceptions = read_exceptions("# why\n\na.rs fn long: a table\nb.rs: a table\n").unwrap();
        assert_eq!(
            check("a.rs", &function(FUNCTION_HARD + 1), &mut exceptions),
            Findings::default()
        );
        assert_eq!(
            exceptions.iter().map(|exception| exception.used).collect::<Vec<_>>(),
            [true, false]
        );
        assert!(read_exceptions("a.rs fn long\n").is_err());
    }

    #[test]
    fn file_of_many_comments_is_not_long() {
        let text = format!("//! Text.\n{}", "// why\n".repeat(2 * FILE_HARD));
        assert_eq!(check("a.rs", &text, &mut []), Findings::default());
        let text = format!("//! Text.\n{}", "use a;\n".repeat(FILE_HARD + 1));
        assert_eq!(check("a.rs", &text, &mut []).wrong.len(), 1);
        assert_eq!(check("x/tests.rs", &text, &mut []), Findings::default());
    }

    #[test]
    fn form_of_files_is_checked() {
        assert_eq!(check("a.rs", "use a;\n", &mut []).wrong.len(), 1);
        assert_eq!(check("a.rs", "//! Text.", &mut []).wrong.len(), 1);
        assert_eq!(check("a.rs", "//! Text.\n\n", &mut []).wrong.len(), 1);
        assert_eq!(check("a/mod.rs", "//! Text.\n", &mut []).wrong.len(), 1);
    }
}
