//! Debian's installer, walked by keys from its first screen to the network step, which finds no card.

use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::bail;
use anyhow::ensure;

use super::Case;
use super::Lab;
use super::Skip;
use super::ctl::Ctl;
use super::ctl::with_user;
use super::picture::Area;
use super::picture::Picture;
use crate::boot::Boot;
use crate::guests::Guest;
use crate::guests::Unavailable;
use crate::guests::installer;
use crate::workspace;

/// How long a screen may take, on a host that is busy with other things.
const SCREEN: &str = "400";
const PATIENCE: Duration = Duration::from_secs(400);
/// Between two looks at the screen.
const LOOK: Duration = Duration::from_secs(1);
/// Between a key and the next one, if it seems to be lost.
const NUDGE: Duration = Duration::from_secs(15);
/// Language, country and keyboard.
const QUESTIONS: usize = 3;

/// The network step in pixels, of a screen of 1280 by 800.
const REFERENCE: &str = "docs/screenshots/installer-graphical.png";
/// There: the heading of a question, "Detect network hardware".
const HEADING: Area = Area {
    left: 14,
    top: 84,
    width: 200,
    height: 22,
};
/// There: the chosen line, "no ethernet card".
const CHOICE: Area = Area {
    left: 20,
    top: 172,
    width: 300,
    height: 22,
};
/// There: the word on the button that questions have and progress bars do not.
const CONTINUE: Area = Area {
    left: 1184,
    top: 766,
    width: 70,
    height: 17,
};
/// Of a thousand pixels, how many of an area have to look as in the reference. Fonts are drawn a little differently where the
/// screen says another size in millimetres; another heading has 740 in common with it.
const SAME: usize = 930;

pub(super) const CASES: [Case; 5] = [
    Case {
        name: "installer_walks_to_the_network_step_amd64_text",
        check: text,
        extra: false,
    },
    Case {
        name: "installer_walks_to_the_network_step_i386_text",
        check: text,
        extra: true,
    },
    Case {
        name: "installer_walks_to_the_network_step_amd64_gtk",
        check: graphical,
        extra: true,
    },
    Case {
        name: "installer_walks_to_the_network_step_i386_gtk",
        check: graphical,
        extra: true,
    },
    Case {
        name: "installer_walks_to_the_network_step_from_cd_amd64_gtk",
        check: from_cd,
        extra: true,
    },
];

/// The installer that the test's name ends with.
fn prepare(lab: &Lab) -> anyhow::Result<Guest> {
    let mut words = lab.name.rsplit('_');
    let (look, architecture) = (words.next(), words.next());
    let (look, architecture) = (look.context("no look")?, architecture.context("no architecture")?);
    installer::prepare(architecture, look).map_err(skip)
}

fn skip(error: anyhow::Error) -> anyhow::Error {
    if error.chain().any(|cause| cause.is::<Unavailable>()) {
        Skip(format!("{error:#}")).into()
    } else {
        error
    }
}

fn text(lab: &Lab) -> anyhow::Result<()> {
    let append = "fb=false modprobe.blacklist=bochs";
    let boot = Boot::new(lab.oxbow, &prepare(lab)?, append).with(&["--machine", "pc", "--memory", "1G", "--no-nic"]);
    walk(lab, boot, |ctl| {
        for question in ["Select a language", "Select your location", "Keymap to use"] {
            ctl.wait_for(question)?;
            ctl.key("enter")?;
        }
        ctl.wait_for("No Ethernet card was detected").map(drop)
    })
}

fn graphical(lab: &Lab) -> anyhow::Result<()> {
    // The driver of the display adapter chooses 1280 by 800.
    let boot = Boot::new(lab.oxbow, &prepare(lab)?, "quiet").with(&["--machine", "pc", "--memory", "1G", "--no-nic"]);
    walk(lab, boot, |ctl| walk_by_pictures(ctl, lab.name))
}

fn from_cd(lab: &Lab) -> anyhow::Result<()> {
    let guest = prepare(lab)?;
    let cd = disks_dir()?.join(lab.name).with_extension("iso");
    let _ = std::fs::remove_file(&cd);
    installer::cd(&guest, &cd).map_err(skip)?;
    let boot = Boot::firmware(lab.oxbow, "pc").with(&["--memory", "1G", "--no-nic", "--cdrom", &cd.to_string_lossy()]);
    walk(lab, boot, |ctl| walk_by_pictures(ctl, lab.name))?;
    std::fs::remove_file(cd)?;
    Ok(())
}

/// The machine ends as a user ends it, who has seen enough.
fn walk(lab: &Lab, boot: Boot, user: impl FnOnce(&Ctl<'_>) -> anyhow::Result<()> + Send) -> anyhow::Result<()> {
    let user = |ctl: &Ctl<'_>| {
        user(ctl)?;
        ctl.ask(&["quit"]).map(drop)
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not end when asked to");
        Ok(())
    })
}

fn disks_dir() -> anyhow::Result<PathBuf> {
    let dir = workspace::guests_dir().join("disks");
    std::fs::create_dir_all(&dir)?;
    Ok(dir)
}

/// Answers three questions as they are, and waits for the network step.
fn walk_by_pictures(ctl: &Ctl<'_>, name: &str) -> anyhow::Result<()> {
    let reference = Picture::read(&workspace::root().join(REFERENCE))?;
    let shot = disks_dir()?.join(name).with_extension("png");
    let look = Look { ctl, shot: &shot };
    let mut answered: Option<Picture> = None;
    for _ in 0..QUESTIONS {
        let is_new = |picture: &Picture| match &answered {
            Some(last) => Ok::<bool, anyhow::Error>(picture.likeness(last, HEADING)? < SAME),
            None => Ok(true),
        };
        let is_question = |picture: &Picture| Ok(is_new(picture)? && picture.likeness(&reference, CONTINUE)? >= SAME);
        let question = look.wait_for(is_question, || Ok(()))?;
        ensure!(
            !is_network_step(&question, &reference)?,
            "the network step came too early"
        );
        // A key that comes when the question has just been drawn may be lost.
        let is_over = |picture: &Picture| Ok(picture.likeness(&question, HEADING)? < SAME);
        look.wait_for(is_over, || ctl.key("enter"))?;
        answered = Some(question);
    }
    look.wait_for(|picture| is_network_step(picture, &reference), || Ok(()))?;
    std::fs::remove_file(shot)?;
    Ok(())
}

fn is_network_step(picture: &Picture, reference: &Picture) -> anyhow::Result<bool> {
    for area in [HEADING, CHOICE, CONTINUE] {
        if picture.likeness(reference, area)? < SAME {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Looks at the screen.
struct Look<'a> {
    ctl: &'a Ctl<'a>,
    shot: &'a Path,
}

impl Look<'_> {
    /// Waits for a picture that is there at two looks; while it is not, something is done from time to time.
    fn wait_for(
        &self,
        suits: impl Fn(&Picture) -> anyhow::Result<bool>,
        nudge: impl Fn() -> anyhow::Result<()>,
    ) -> anyhow::Result<Picture> {
        let end = Instant::now() + PATIENCE;
        let mut nudged: Option<Instant> = None;
        let mut suited = false;
        while Instant::now() < end {
            self.ctl.ask(&["screenshot", &self.shot.to_string_lossy()])?;
            let picture = Picture::read(self.shot)?;
            let now = (picture.width, picture.height) == (1280, 800) && suits(&picture)?;
            if now && suited {
                return Ok(picture);
            }
            suited = now;
            if !now && nudged.is_none_or(|last| last.elapsed() >= NUDGE) {
                nudge()?;
                nudged = Some(Instant::now());
            }
            thread::sleep(LOOK);
        }
        bail!("the screen does not show what it should: {}", self.shot.display())
    }
}
