//! Shared folders by both protocols, over memory-mapped registers and over PCI: a tree is copied there and back, and the host
//! looks at what became of it.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use anyhow::ensure;
use serde_json::Value;

use super::Lab;
use super::cases::no_complaints;
use super::cases::says;
use super::ctl::Ctl;
use super::ctl::with_user;
use crate::workspace;

/// How long the guest may take to do its work.
const LIMIT: Duration = Duration::from_secs(300);
/// The same of its screen, in seconds; nothing is awaited there.
const SCREEN: &str = "300";
/// Directories of the tree, and files of each.
const DIRS: usize = 4;
const FILES: usize = 10;

/// Mounts both folders and a protected one, copies the tree from one to the other and back, makes and removes things, and waits
/// until the host has looked. The kernel's command line has room for no double quotes.
const SCRIPT: &str = "for m in virtio virtio_ring virtio_pci_legacy_dev virtio_pci_modern_dev virtio_pci virtio_mmio fuse \
                      virtiofs netfs fscache 9pnet 9pnet_virtio 9p; do insmod /lib/modules/$m.ko; done; mkdir /a /b /c; \
                      mount -t virtiofs files /a && mount -t 9p -o trans=virtio,version=9p2000.L,msize=262144 plan9 /b && \
                      mount -t virtiofs locked /c && echo @mounted; cp -a /a/tree /b/there && cp -a /b/there /a/again && \
                      echo @copied; (cd /a/tree; find . -type f | sort | xargs sha256sum) >/tmp/x; \
                      (cd /b/there; sha256sum -c /tmp/x | grep -vc OK) ; (cd /a/again; sha256sum -c -s /tmp/x) && echo @same; \
                      touch /c/new || echo @locked; cat /c/tree/dir0/file1 | sha256sum; \
                      for d in /a /b; do cd $d; mkdir gone; echo text >gone/one; mv gone/one two; ln two three; echo more >>three; \
                      chown 7:8 two; chmod 4711 two; rm three; rmdir gone; stat -c '@stat %u:%g %a %s %h' two; cd /; done; \
                      echo @look; while [ ! -e /a/seen ]; do sleep .2; done; umount /a /b /c && echo @unmounted";

pub(super) fn shared_folders_work_on_the_microvm(lab: &Lab) -> anyhow::Result<()> {
    shared_folders_work(lab, "microvm")
}

pub(super) fn shared_folders_work_on_the_pc(lab: &Lab) -> anyhow::Result<()> {
    shared_folders_work(lab, "pc")
}

fn shared_folders_work(lab: &Lab, machine: &str) -> anyhow::Result<()> {
    let dir = workspace::guests_dir().join("shares").join(machine);
    let _ = fs::remove_dir_all(&dir);
    let (files, plan9) = (dir.join("files"), dir.join("plan9"));
    fs::create_dir_all(&plan9)?;
    plant(&files.join("tree"))?;
    let root = fs::metadata(&files)?.uid() == 0;
    let shares = [
        format!("files={}", files.display()),
        format!("plan9={},proto=9p", plan9.display()),
        format!("locked={},ro", files.display()),
    ];
    let boot = lab.commands("full", SCRIPT)?.with(&["--machine", machine]);
    let boot = shares.iter().fold(boot, |boot, share| boot.with(&["--share", share]));
    let told = boot.told();
    let user = |ctl: &Ctl<'_>| {
        told.wait_for("@look", LIMIT)?;
        let shown: Value = serde_json::from_str(&ctl.ask(&["inspect", "--json"])?)?;
        for (share, tag, protocol) in [("share0", "files", "virtiofs"), ("share1", "plan9", "9p")] {
            let shown = find(&shown, share).with_context(|| format!("{share} is not shown"))?;
            let text = shown.to_string();
            ensure!(text.contains(tag) && text.contains(protocol), "{share} is {text}");
        }
        fs::write(files.join("seen"), "").context("cannot tell the guest")
    };
    with_user(lab, boot, SCREEN, user, |seen| {
        ensure!(seen.status == Some(0), "the machine did not power off");
        no_complaints(seen)?;
        for part in ["@mounted", "@copied", "@same", "@locked", "@unmounted"] {
            says(seen, part)?;
        }
        // Without root all belongs to who runs the machine.
        if root {
            let stats = seen
                .lines
                .iter()
                .filter(|line| line.text.contains("@stat 7:8 4711 10 1"));
            ensure!(stats.count() == 2, "files are not what the guest made of them");
        }
        Ok(())
    })?;
    for copy in [plan9.join("there"), files.join("again")] {
        same(&files.join("tree"), &copy)?;
    }
    for made in [files.join("two"), plan9.join("two")] {
        let text = fs::read_to_string(&made).with_context(|| format!("cannot read {}", made.display()))?;
        ensure!(text == "text\nmore\n", "{} holds {text:?}", made.display());
    }
    ensure!(!files.join("new").exists(), "the guest wrote to a protected folder");
    fs::remove_dir_all(dir)?;
    Ok(())
}

/// The node called `name`, wherever it is.
fn find<'a>(tree: &'a Value, name: &str) -> Option<&'a Value> {
    let children = tree.as_object()?;
    children
        .get(name)
        .or_else(|| children.values().find_map(|child| find(child, name)))
}

/// Makes a tree: files of many lengths, of all permissions, and links.
fn plant(tree: &Path) -> anyhow::Result<()> {
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for dir in 0..DIRS {
        let path = tree.join(format!("dir{dir}"));
        fs::create_dir_all(&path)?;
        for file in 0..FILES {
            let path = path.join(format!("file{file}"));
            // From nothing to a megabyte and a half, none of which is a round number of pages.
            let len = (file * file * file + dir) * 2000;
            let bytes: Vec<u8> = std::iter::repeat_with(|| {
                word = word.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.to_le_bytes()
            })
            .flatten()
            .take(len)
            .collect();
            fs::write(&path, bytes)?;
            let mode = 0o400 | u32::try_from(file * 17 + dir)? & 0o377;
            fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        }
        std::os::unix::fs::symlink("../dir0/file1", path.join("link"))?;
    }
    Ok(())
}

/// Whether two trees are the same: names, contents, permissions, links.
fn same(one: &Path, other: &Path) -> anyhow::Result<()> {
    let names = |dir: &Path| -> anyhow::Result<Vec<_>> {
        let entries = fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
        let mut names: Vec<_> = entries
            .map(|entry| entry.map(|entry| entry.file_name()))
            .collect::<Result<_, _>>()?;
        names.sort();
        Ok(names)
    };
    let (ours, theirs) = (names(one)?, names(other)?);
    ensure!(ours == theirs, "{} holds {theirs:?}", other.display());
    for name in ours {
        let (a, b) = (one.join(&name), other.join(&name));
        let (first, second) = (fs::symlink_metadata(&a)?, fs::symlink_metadata(&b)?);
        ensure!(
            first.mode() == second.mode(),
            "{} has mode {:o}",
            b.display(),
            second.mode()
        );
        if first.is_symlink() {
            ensure!(
                fs::read_link(&a)? == fs::read_link(&b)?,
                "{} leads elsewhere",
                b.display()
            );
        } else if first.is_dir() {
            same(&a, &b)?;
        } else {
            ensure!(fs::read(&a)? == fs::read(&b)?, "{} holds something else", b.display());
        }
    }
    Ok(())
}
