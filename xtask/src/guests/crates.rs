//! Programs of crates.io that guests run, in an archive that is put behind a guest's own.

use std::fs::File;
use std::io::BufWriter;
use std::path::PathBuf;
use std::process::Command;

use super::apt::Unavailable;
use crate::cpio::Archive;
use crate::process;
use crate::workspace;

const TARGET: &str = "x86_64-unknown-linux-gnu";
/// pjdfstest checks what POSIX says of file systems, call by call; fsx does random things to a file and compares.
const CRATES: [&str; 2] = ["pjdfstest@0.2.2", "fsx@0.3.2"];
const PROGRAMS: [&str; 2] = ["pjdfstest", "fsx"];
/// The users that pjdfstest becomes.
const PASSWD: &str =
    "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/sh\ntests:x:1001:1001:tests:/:/bin/sh\n";
const GROUP: &str = "root:x:0:\nnobody:x:65534:\ntests:x:1001:\n";
/// What it may expect of Linux. Nothing is mounted anew.
const CONFIGURATION: &str = r#"[features]
posix_fallocate = {}
rename_ctime = {}
utime_now = {}
utimensat = {}
[settings]
naptime = 0.01
allow_remount = false
[dummy_auth]
entries = [["nobody", "nobody"], ["tests", "tests"]]
"#;

/// An archive with the tests of file systems and `/test.sh`, made once. Fails with [`Unavailable`] where the crates cannot be
/// had.
pub(crate) fn file_system_tests(script: &str) -> anyhow::Result<PathBuf> {
    let dir = workspace::guests_dir().join("file-system-tests");
    std::fs::create_dir_all(&dir)?;
    // Two of us at the same time would build into each other's files.
    let lock = File::create(dir.join("lock"))?;
    lock.lock()?;
    let (path, recipe) = (dir.join("tests.cpio"), dir.join("recipe"));
    let text = format!("{CRATES:?}\n{PASSWD}{GROUP}{CONFIGURATION}{script}");
    if path.is_file() && std::fs::read_to_string(&recipe).is_ok_and(|old| old == text) {
        return Ok(path);
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["install", "--quiet", "--locked", "--target", TARGET, "--root"]);
    cargo.arg(&dir).args(CRATES);
    // The guest has no libraries for them.
    cargo.env("RUSTFLAGS", "-C target-feature=+crt-static -C strip=symbols");
    process::output(&mut cargo)
        .map_err(|error| Unavailable(format!("the tests of file systems cannot be had: {error:#}")))?;
    let mut archive = Archive::new(BufWriter::new(File::create(&path)?));
    for program in PROGRAMS {
        let bytes = std::fs::read(dir.join("bin").join(program))?;
        archive.file(&format!("bin/{program}"), 0o755, &bytes)?;
    }
    archive.directory("etc", 0o755)?;
    for (name, text) in [("passwd", PASSWD), ("group", GROUP), ("pjdfstest.toml", CONFIGURATION)] {
        archive.file(&format!("etc/{name}"), 0o644, text.as_bytes())?;
    }
    archive.file("test.sh", 0o755, script.as_bytes())?;
    archive.finish()?;
    std::fs::write(&recipe, text)?;
    Ok(path)
}
