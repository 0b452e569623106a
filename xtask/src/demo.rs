//! `cargo xtask demo`: a stock Debian kernel in `oxbow`.
//!
//! On a terminal it ends in a shell of the guest; otherwise the guest shows itself and the times are reported.

use std::io::IsTerminal;
use std::path::Path;
use std::time::Duration;

use anyhow::bail;

use crate::arguments::Arguments;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::guests;
use crate::guests::Guest;
use crate::process;
use crate::workspace;

/// How much of the log a failure shows.
const LAST_LINES: usize = 60;

pub(crate) fn main(mut arguments: Arguments) -> anyhow::Result<()> {
    let cpus = arguments.parsed::<u32>("--cpus")?.unwrap_or(1).to_string();
    arguments.end()?;
    let guest = guests::prepare("demo")?;
    eprintln!("demo: building oxbow");
    let oxbow = workspace::build_oxbow()?;
    if std::io::stdin().is_terminal() && std::io::stdout().is_terminal() {
        let boot = Boot::new(&oxbow, &guest, "console=ttyS0 quiet").with(&["--cpus", &cpus]);
        return process::run(&mut boot.command());
    }
    let seen = show(&oxbow, &guest, &cpus)?;
    report(&seen)
}

fn show(oxbow: &Path, guest: &Guest, cpus: &str) -> anyhow::Result<Seen> {
    eprintln!("demo: booting {}", guest.kernel.display());
    Boot::new(oxbow, guest, "console=ttyS0 panic=-1 demo=batch")
        .with(&["--cpus", cpus])
        .timeout(Duration::from_secs(600))
        .watch()
}

fn report(seen: &Seen) -> anyhow::Result<()> {
    let log = workspace::guests_dir().join("demo.log");
    std::fs::write(&log, seen.log())?;
    let time = |at: Option<Duration>| at.map_or("-".to_owned(), |at| format!("{:.2} s", at.as_secs_f64()));
    if let Some(line) = seen.line("Linux version") {
        println!("kernel        {}", after_timestamp(&line.text));
    }
    let said: Vec<&str> = seen
        .lines
        .iter()
        .map(|line| line.text.as_str())
        .skip_while(|text| !text.contains("@@begin"))
        .skip(1)
        .take_while(|text| !text.contains("@@end"))
        .collect();
    for text in &said {
        println!("guest says    {text}");
    }
    println!("first output  {}", time(seen.first_output));
    println!("init          {}", time(seen.line("@@init").map(|line| line.at)));
    println!("power-off     {}", time(Some(seen.end)));
    println!("log           {}", log.display());
    let greeted = said
        .iter()
        .any(|text| text.starts_with("Linux ") && text.contains("Debian"));
    if seen.status == Some(0) && greeted && seen.line("@@end 0").is_some() {
        return Ok(());
    }
    let log = seen.log();
    let lines: Vec<&str> = log.lines().collect();
    for line in &lines[lines.len().saturating_sub(LAST_LINES)..] {
        eprintln!("{line}");
    }
    match seen.status {
        Some(0) => bail!("the guest powered off, but did not say what it should"),
        Some(status) => bail!("oxbow ended with status {status}"),
        None => bail!("oxbow did not end and was killed"),
    }
}

/// A line of the kernel's log without its `[    0.000000] `.
fn after_timestamp(text: &str) -> &str {
    text.split_once("] ").map_or(text, |(_, rest)| rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_timestamp_keeps_a_line_without_one() {
        assert_eq!(after_timestamp("[    0.000000] Linux version 6"), "Linux version 6");
        assert_eq!(after_timestamp("Linux version 6"), "Linux version 6");
    }
}
