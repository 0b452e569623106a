//! The demo guest: where `cargo xtask demo` leaves it.

use std::path::PathBuf;

use anyhow::bail;
use spec::BootSpec;

/// Command line of the demo guest.
const APPEND: &str = "console=ttyS0 quiet";

/// Boots the demo guest where no kernel is named.
pub(crate) fn fill_in(boot: &mut BootSpec, append: Option<&str>) -> anyhow::Result<()> {
    if boot.kernel.is_some() {
        return Ok(());
    }
    if boot.initrd.is_some() {
        bail!("--initrd needs a --kernel beside it");
    }
    let present = |dir: &PathBuf| dir.join("vmlinuz").is_file() && dir.join("initrd.cpio").is_file();
    let Some(dir) = places().into_iter().find(present) else {
        bail!("no --kernel is given, and there is no demo guest; `cargo xtask demo` fetches one");
    };
    *boot = BootSpec {
        kernel: Some(dir.join("vmlinuz")),
        initrd: Some(dir.join("initrd.cpio")),
        append: append.unwrap_or(APPEND).to_owned(),
        ..boot.clone()
    };
    Ok(())
}

/// Where it may be, the nearest first.
fn places() -> Vec<PathBuf> {
    let dir = |name| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    if let Some(cache) = dir("OXBOW_CACHE") {
        return vec![cache.join("demo")];
    }
    let cache = dir("XDG_CACHE_HOME").or_else(|| Some(dir("HOME")?.join(".cache")));
    let mut places: Vec<PathBuf> = cache.into_iter().map(|cache| cache.join("oxbow/demo")).collect();
    places.push(PathBuf::from("target/guests/demo"));
    places
}
