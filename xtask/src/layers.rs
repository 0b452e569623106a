//! `cargo xtask layers`: which crate may use which, and which may hold unsafe code.
//!
//! Folders below `crates` are layers. A crate uses crates of its own layer or of layers above it in the list, never of
//! one below; nothing uses `xtask`. Only the crates listed here may leave out `#![forbid(unsafe_code)]`.

use std::path::Path;

use anyhow::bail;

use crate::arguments::Arguments;
use crate::workspace;
use crate::workspace::Metadata;
use crate::workspace::Package;

/// From the vocabulary down to the programs.
const LAYERS: [&str; 9] = [
    "vm", "cpu", "devices", "block", "files", "net", "machine", "manage", "apps",
];

/// Crates that may contain `unsafe`.
const UNSAFE: [&str; 5] = ["guest-memory", "x86-interp", "x86-jit", "kvm", "tap"];

pub(crate) fn main(arguments: Arguments) -> anyhow::Result<()> {
    arguments.end()?;
    let wrong = check()?;
    for line in &wrong {
        eprintln!("{line}");
    }
    if !wrong.is_empty() {
        bail!("{} mistakes in the layers", wrong.len());
    }
    Ok(())
}

/// All that is wrong, one line each.
pub(crate) fn check() -> anyhow::Result<Vec<String>> {
    let metadata = workspace::metadata()?;
    let mut wrong = check_dependencies(&metadata);
    for package in &metadata.packages {
        wrong.extend(check_unsafe(package)?);
    }
    Ok(wrong)
}

/// Where a package stands. `Err` is what is wrong with its place.
fn place<'a>(root: &Path, dir: &'a Path) -> Result<(usize, &'a str), String> {
    let shown = dir.strip_prefix(root).unwrap_or(dir);
    let words: Vec<&str> = shown.iter().filter_map(|word| word.to_str()).collect();
    let (layer, folder) = match words.as_slice() {
        ["xtask"] => return Ok((LAYERS.len(), "xtask")),
        ["crates", layer, _] => (
            *layer,
            dir.file_name().and_then(|name| name.to_str()).unwrap_or_default(),
        ),
        _ => return Err(format!("{}: not crates/<layer>/<crate>", shown.display())),
    };
    match LAYERS.iter().position(|&known| known == layer) {
        Some(index) => Ok((index, folder)),
        None => Err(format!("{}: there is no layer {layer}", shown.display())),
    }
}

fn check_dependencies(metadata: &Metadata) -> Vec<String> {
    let mut wrong = Vec::new();
    for package in &metadata.packages {
        let (own, folder) = match place(&metadata.workspace_root, package.dir()) {
            Ok(found) => found,
            Err(message) => {
                wrong.push(message);
                continue;
            }
        };
        if folder != package.name {
            wrong.push(format!("{}: the folder is called {folder}", package.name));
        }
        for dependency in &package.dependencies {
            let Some(path) = &dependency.path else {
                continue;
            };
            match place(&metadata.workspace_root, path) {
                Ok((used, _)) if used == LAYERS.len() => wrong.push(format!("{}: uses xtask", package.name)),
                Ok((used, _)) if used > own => wrong.push(format!(
                    "{} ({}) uses {} ({}), a layer below it",
                    package.name,
                    layer_name(own),
                    dependency.name,
                    layer_name(used)
                )),
                Ok(_) => {}
                Err(message) => wrong.push(message),
            }
        }
    }
    wrong
}

fn layer_name(index: usize) -> &'static str {
    LAYERS.get(index).copied().unwrap_or("xtask")
}

/// The roots of a package's library and programs must forbid unsafe code.
fn check_unsafe(package: &Package) -> anyhow::Result<Vec<String>> {
    let mut wrong = Vec::new();
    let may = UNSAFE.contains(&package.name.as_str());
    for name in ["src/lib.rs", "src/main.rs"] {
        let path = package.dir().join(name);
        if !path.is_file() {
            continue;
        }
        let text = std::fs::read_to_string(&path)?;
        if !may && !text.contains("#![forbid(unsafe_code)]") {
            wrong.push(format!("{}: {name} does not forbid unsafe code", package.name));
        }
        if may && !text.contains("UNSAFETY:") {
            wrong.push(format!(
                "{}: {name} has no UNSAFETY paragraph that says why it needs unsafe code",
                package.name
            ));
        }
    }
    Ok(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn metadata(packages: &[(&str, &str, &[&str])]) -> Metadata {
        let package = |&(dir, name, uses): &(&str, &str, &[&str])| {
            let uses: Vec<String> = uses
                .iter()
                .map(|path| {
                    format!(
                        r#"{{"name": "{}", "path": "/w/{path}"}}"#,
                        path.rsplit('/').next().unwrap()
                    )
                })
                .collect();
            let uses = uses.join(",");
            format!(r#"{{"name": "{name}", "manifest_path": "/w/{dir}/Cargo.toml", "dependencies": [{uses}]}}"#)
        };
        let packages: Vec<String> = packages.iter().map(package).collect();
        let packages = packages.join(",");
        let text = format!(r#"{{"packages": [{packages}], "target_directory": "/w/target", "workspace_root": "/w"}}"#);
        serde_json::from_str(&text).unwrap()
    }

    #[test]
    fn own_layer_and_layers_above_are_fine() {
        let metadata = metadata(&[
            ("crates/vm/guest-memory", "guest-memory", &[]),
            ("crates/vm/device-model", "device-model", &["crates/vm/guest-memory"]),
            ("crates/apps/oxbow", "oxbow", &["crates/vm/device-model"]),
            ("xtask", "xtask", &["crates/apps/oxbow"]),
        ]);
        assert_eq!(check_dependencies(&metadata), Vec::<String>::new());
    }

    #[test]
    fn a_layer_below_is_reported() {
        let metadata = metadata(&[("crates/cpu/x86-interp", "x86-interp", &["crates/devices/chipset"])]);
        let wrong = check_dependencies(&metadata);
        assert_eq!(wrong, ["x86-interp (cpu) uses chipset (devices), a layer below it"]);
    }

    #[test]
    fn wrong_folders_and_unknown_layers_are_reported() {
        let metadata = metadata(&[
            ("crates/vm/memory", "guest-memory", &[]),
            ("crates/misc/utils", "utils", &[]),
            ("tool", "tool", &[]),
            ("crates/vm/a", "a", &["xtask"]),
        ]);
        let wrong = check_dependencies(&metadata).join("\n");
        for part in [
            "folder is called memory",
            "no layer misc",
            "not crates/<layer>",
            "uses xtask",
        ] {
            assert!(wrong.contains(part), "{part}: {wrong}");
        }
        assert_eq!(wrong.lines().count(), 4);
    }
}
