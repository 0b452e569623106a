//! Boots of whole guests: stock Debian kernels, from launch to power-off.

mod acceptance;
mod balloon;
mod cases;
mod control;
mod ctl;
mod disks;
mod grub;
mod input;
mod installer;
mod net;
pub(super) mod networks;
mod paravirt;
mod picture;
mod plug;
mod scsi;
mod shares;
mod virtio;
mod vsock;

use std::path::Path;
use std::sync::Mutex;
use std::sync::OnceLock;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Instant;

use anyhow::bail;

use super::tally::Tally;
use crate::boot::Boot;
use crate::boot::Seen;
use crate::guests;
use crate::guests::Guest;
use crate::guests::RECIPES;
use crate::guests::Unavailable;
use crate::workspace;
use cases::CASES;

/// How much of a failed test's console is shown; the rest is in its log.
const LAST_LINES: usize = 40;

/// What a test asks for does not exist on this host.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
struct Skip(String);

/// One test.
#[derive(Clone, Copy)]
struct Case {
    name: &'static str,
    check: fn(&Lab) -> anyhow::Result<()>,
    /// It runs only if it is asked for.
    extra: bool,
}

/// What a test works with.
#[derive(Debug)]
struct Lab<'a> {
    oxbow: &'a Path,
    name: &'static str,
    guests: &'a Guests,
}

/// The guests, each fetched when the first test asks for it.
#[derive(Debug, Default)]
struct Guests {
    prepared: [OnceLock<Result<Guest, (bool, String)>>; RECIPES.len()],
}

/// Runs the tests whose names contain one of `names`, or all, as many at a time as there are processors.
pub(super) fn run(oxbow: &Path, names: &[String]) -> Tally {
    let named = |case: &Case| names.iter().any(|name| case.name.contains(name.as_str()));
    let wanted = |case: &&Case| named(case) || names.is_empty() && !case.extra;
    let cases: Vec<&Case> = disks::CASES
        .iter()
        .chain(&grub::CASES)
        .chain(&installer::CASES)
        .chain(&vsock::CASES)
        .chain(&networks::CASES)
        .chain(&scsi::CASES)
        .chain(&input::CASES)
        .chain(&paravirt::CASES)
        .chain(&acceptance::CASES)
        .chain(CASES)
        .filter(wanted)
        .collect();
    let guests = Guests::default();
    let next = AtomicUsize::new(0);
    let tally = Mutex::new(Tally::default());
    let work = || {
        while let Some(case) = cases.get(next.fetch_add(1, Ordering::Relaxed)) {
            let one = run_case(oxbow, &guests, case);
            tally.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).add(one);
        }
    };
    let workers = thread::available_parallelism()
        .map_or(1, |count| count.get())
        .min(cases.len());
    thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(work);
        }
    });
    tally.into_inner().unwrap_or_else(|poisoned| poisoned.into_inner())
}

fn run_case(oxbow: &Path, guests: &Guests, case: &Case) -> Tally {
    let launch = Instant::now();
    let lab = Lab {
        oxbow,
        name: case.name,
        guests,
    };
    let result = (case.check)(&lab);
    let took = launch.elapsed().as_secs_f64();
    match result {
        Ok(()) => {
            println!("test {} ... ok ({took:.1} s)", case.name);
            Tally::passed(1)
        }
        Err(error) if error.is::<Skip>() => {
            println!("test {} ... SKIPPED: {error}", case.name);
            Tally::skipped(1)
        }
        Err(error) => {
            println!("test {} ... FAILED ({took:.1} s)\n{error:#}", case.name);
            Tally::failed(1)
        }
    }
}

impl Lab<'_> {
    fn guest(&self, name: &str) -> anyhow::Result<&Guest> {
        let Some(index) = RECIPES.iter().position(|recipe| recipe.name == name) else {
            bail!("there is no guest {name}");
        };
        let prepare = || {
            guests::prepare(name).map_err(|error| (error.chain().any(|e| e.is::<Unavailable>()), format!("{error:#}")))
        };
        match self.guests.prepared[index].get_or_init(prepare) {
            Ok(guest) => Ok(guest),
            Err((true, message)) => Err(Skip(message.clone()).into()),
            Err((false, message)) => bail!("{message}"),
        }
    }

    /// A boot of a guest that runs commands and powers off.
    fn commands(&self, guest: &str, commands: &str) -> anyhow::Result<Boot> {
        let append = format!("console=ttyS0 panic=-1 oxbow_run=\"{commands}\"");
        Ok(Boot::new(self.oxbow, self.guest(guest)?, &append))
    }

    /// Boots, keeps the log, and hands what was seen to `judge`, whose objection gets the end of the log.
    fn watch(&self, boot: &Boot, judge: impl FnOnce(&Seen) -> anyhow::Result<()>) -> anyhow::Result<()> {
        let seen = boot.watch()?;
        let log = seen.log();
        let dir = workspace::guests_dir().join("logs");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(format!("{}.log", self.name));
        std::fs::write(&path, &log)?;
        judge(&seen).map_err(|objection| {
            let lines: Vec<&str> = log.lines().collect();
            let last = lines[lines.len().saturating_sub(LAST_LINES)..].join("\n");
            objection.context(format!("{last}\n{}", path.display()))
        })
    }
}
