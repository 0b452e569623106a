//! Debian packages as an ordinary user: an apt of our own in the cache directory.
//!
//! Nothing of the system's apt or dpkg state is read or changed, except for its proxy settings and the archive's keys.
//! apt verifies signatures and checksums.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use anyhow::Context;
use anyhow::bail;

use crate::process;

const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";
const MIRROR: &str = "http://deb.debian.org/debian";
const SUITE: &str = "bookworm";
const RELEASE: u32 = 12;
const ARCHITECTURES: [&str; 2] = ["amd64", "i386"];

/// Packages cannot be had here: no apt, no network.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct Unavailable(pub(super) String);

/// The private apt.
#[derive(Debug)]
pub(crate) struct Apt {
    dir: PathBuf,
    updated: bool,
}

impl Apt {
    /// Prepares `dir`; says what is missing on this host.
    pub(crate) fn open(dir: &Path) -> anyhow::Result<Self> {
        check_host()?;
        for sub in ["lists/partial", "archives/partial", "debs", "log"] {
            let path = dir.join(sub);
            std::fs::create_dir_all(&path).with_context(|| format!("cannot create {}", path.display()))?;
        }
        let apt = Self {
            dir: dir.to_owned(),
            updated: false,
        };
        std::fs::write(apt.dir.join("status"), "")?;
        std::fs::write(apt.dir.join("sources.list"), format!("{}\n", source_line()))?;
        std::fs::write(apt.config(), configuration(dir, &proxies())?)?;
        Ok(apt)
    }

    /// Fetches the lists of packages.
    pub(crate) fn update(&mut self) -> anyhow::Result<()> {
        eprintln!("guests: asking {} for its packages", mirror());
        process::output(self.apt("apt-get").args(["--quiet", "update"])).map_err(unavailable)?;
        std::fs::write(self.dir.join("lists/complete"), "")?;
        self.updated = true;
        Ok(())
    }

    /// The package file of `name:architecture`, from the cache or the archive. `name` may be a meta-package of kernels.
    pub(crate) fn deb(&mut self, name: &str, architecture: &str) -> anyhow::Result<PathBuf> {
        let kept = self.dir.join("debs").join(format!("{name}@{architecture}.deb"));
        if kept.is_file() {
            return Ok(kept);
        }
        if !self.dir.join("lists/complete").is_file() {
            self.update()?;
        }
        match self.download(name, architecture, &kept) {
            // The archive moved on since the lists were fetched.
            Err(_) if !self.updated => {
                self.update()?;
                self.download(name, architecture, &kept)?;
            }
            result => result?,
        }
        Ok(kept)
    }

    /// Forgets all packages, so that newer ones are fetched.
    pub(crate) fn forget(&mut self) -> anyhow::Result<()> {
        let debs = self.dir.join("debs");
        std::fs::remove_dir_all(&debs)?;
        std::fs::create_dir_all(&debs)?;
        self.update()
    }

    fn download(&self, name: &str, architecture: &str, kept: &Path) -> anyhow::Result<()> {
        let real = self.real_name(name, architecture)?;
        eprintln!("guests: fetching {real} ({architecture})");
        let dir = self.dir.join(format!("fetch-{name}-{architecture}"));
        let _ = std::fs::remove_dir_all(&dir);
        std::fs::create_dir_all(&dir)?;
        let mut apt_get = self.apt("apt-get");
        apt_get.current_dir(&dir).args(["--quiet", "download"]);
        process::output(apt_get.arg(format!("{real}:{architecture}"))).map_err(unavailable)?;
        let file = std::fs::read_dir(&dir)?
            .filter_map(|entry| Some(entry.ok()?.path()))
            .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
            .with_context(|| format!("apt-get download left no package of {real}"))?;
        std::fs::rename(&file, kept)?;
        std::fs::remove_dir_all(&dir)?;
        Ok(())
    }

    /// Follows a meta-package to the kernel of today.
    fn real_name(&self, name: &str, architecture: &str) -> anyhow::Result<String> {
        let mut apt_cache = self.apt("apt-cache");
        apt_cache
            .args(["--no-all-versions", "show"])
            .arg(format!("{name}:{architecture}"));
        let text = process::output(&mut apt_cache).map_err(unavailable)?;
        Ok(kernel_of(&text).unwrap_or(name).to_owned())
    }

    fn apt(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.env("APT_CONFIG", self.config()).env("LC_ALL", "C");
        command
    }

    fn config(&self) -> PathBuf {
        self.dir.join("apt.conf")
    }
}

/// Unpacks the files that match `patterns` (of tar) into `dir`.
pub(crate) fn unpack(deb: &Path, dir: &Path, patterns: &[&str]) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir)?;
    let script = "dpkg-deb --fsys-tarfile \"$0\" | tar -x -C \"$1\" --no-same-owner --wildcards -- \"${@:2}\"";
    let mut bash = Command::new("bash");
    bash.args(["-o", "pipefail", "-c", script])
        .arg(deb)
        .arg(dir)
        .args(patterns);
    process::output(&mut bash).with_context(|| format!("cannot unpack {}", deb.display()))?;
    Ok(())
}

/// The line of `sources.list`, as `mmdebstrap` takes it too.
pub(crate) fn source_line() -> String {
    format!("deb [signed-by={KEYRING}] {} {SUITE} main", mirror())
}

/// The release of Debian that we take packages of.
pub(crate) fn suite() -> &'static str {
    SUITE
}

/// Its number.
pub(crate) fn release() -> u32 {
    RELEASE
}

fn mirror() -> String {
    std::env::var("OXBOW_DEBIAN_MIRROR").unwrap_or_else(|_| MIRROR.to_owned())
}

fn unavailable(error: anyhow::Error) -> anyhow::Error {
    let text = format!("Debian's packages cannot be fetched: {error:#} (OXBOW_DEBIAN_MIRROR names another mirror)");
    Unavailable(text).into()
}

fn check_host() -> Result<(), Unavailable> {
    let tools = [
        ("apt-get", "apt"),
        ("apt-cache", "apt"),
        ("dpkg-deb", "dpkg"),
        ("tar", "tar"),
        ("bash", "bash"),
    ];
    for (program, package) in tools {
        if process::find(program).is_none() {
            return Err(Unavailable(format!(
                "the guests are made of Debian's packages, and {program} (package {package}) is not installed"
            )));
        }
    }
    if !Path::new(KEYRING).is_file() {
        return Err(Unavailable(format!(
            "no {KEYRING}: install the package debian-archive-keyring"
        )));
    }
    Ok(())
}

/// Lines of the system's configuration that say how to reach the network.
fn proxies() -> Vec<String> {
    let Ok(text) = process::output(Command::new("apt-config").arg("dump")) else {
        return Vec::new();
    };
    let is_proxy = |line: &&str| line.starts_with("Acquire::http") && line.to_ascii_lowercase().contains("proxy");
    text.lines().filter(is_proxy).map(str::to_owned).collect()
}

fn configuration(dir: &Path, proxies: &[String]) -> anyhow::Result<String> {
    let dir = dir.to_str().filter(|dir| !dir.contains(['"', '\\', '\n']));
    let Some(dir) = dir else {
        bail!("apt cannot work in a directory with such a name");
    };
    let mut text = format!(
        r#"Dir::State "{dir}";
Dir::State::lists "{dir}/lists";
Dir::State::status "{dir}/status";
Dir::Cache "{dir}";
Dir::Cache::archives "{dir}/archives";
Dir::Log "{dir}/log";
Dir::Etc::sourcelist "{dir}/sources.list";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::main "/dev/null";
Dir::Etc::parts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
APT::Architecture "amd64";
APT::Sandbox::User "";
APT::Update::Error-Mode "any";
Acquire::Languages "none";
Acquire::GzipIndexes "true";
Acquire::Retries "2";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
"#
    );
    for architecture in ARCHITECTURES {
        text.push_str(&format!("APT::Architectures:: \"{architecture}\";\n"));
    }
    for line in proxies {
        text.push_str(line);
        text.push('\n');
    }
    Ok(text)
}

/// The versioned kernel that a meta-package depends on.
fn kernel_of(record: &str) -> Option<&str> {
    let depends = record.lines().find_map(|line| line.strip_prefix("Depends: "))?;
    depends
        .split([',', '|'])
        .filter_map(|item| item.split_whitespace().next())
        .find(|name| {
            name.strip_prefix("linux-image-")
                .is_some_and(|rest| rest.starts_with(|c: char| c.is_ascii_digit()))
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kernel_of_follows_meta_packages_only() {
        let meta = "Package: linux-image-cloud-amd64\nDepends: linux-image-6.1.0-50-cloud-amd64 (= 6.1.176-1)\n";
        assert_eq!(kernel_of(meta), Some("linux-image-6.1.0-50-cloud-amd64"));
        let kernel = "Package: linux-image-6.1.0-50-amd64\nDepends: kmod, linux-base (>= 4.3~), initramfs-tools | x\n";
        assert_eq!(kernel_of(kernel), None);
        assert_eq!(kernel_of("Package: busybox-static\n"), None);
    }

    #[test]
    fn configuration_names_no_place_of_the_system() {
        let text = configuration(
            Path::new("/cache/apt"),
            &["Acquire::http::Proxy \"http://p:1\";".to_owned()],
        )
        .unwrap();
        for line in text.lines().filter(|line| line.starts_with("Dir::")) {
            assert!(
                line.contains("\"/cache/apt") || line.contains("\"/dev/null\""),
                "{line}"
            );
        }
        assert!(text.contains("Acquire::http::Proxy"));
        assert!(configuration(Path::new("/a\"b"), &[]).is_err());
    }
}
