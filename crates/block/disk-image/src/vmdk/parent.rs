//! The parent of a VMDK image: where it may be, and whether it is still what the child was made over.

use std::path::PathBuf;
use std::sync::Arc;

use super::descriptor::Descriptor;
use crate::BlockError;
use crate::Identity;
use crate::Image;
use crate::Result;
use crate::open::Opening;

/// Opens the parent that the descriptor names, whose CID was `cid`.
pub(super) fn find(opening: &Opening, descriptor: &Descriptor, cid: u32) -> Result<(PathBuf, Arc<dyn Image>)> {
    let refuse = |what: String| BlockError::Parent {
        file: opening.path.display().to_string(),
        what,
    };
    let name = descriptor
        .parent
        .as_ref()
        .ok_or_else(|| refuse("the descriptor has a parent, but no name for it".to_owned()))?;
    let mut paths = vec![opening.resolve(name)?];
    // A path of another machine, or of Windows: the file itself may lie beside the child.
    let plain = name.replace('\\', "/");
    for name in [plain.as_str(), plain.rsplit('/').next().unwrap_or_default()] {
        if !name.is_empty() {
            paths.push(opening.resolve(name)?);
        }
    }
    let there = paths
        .iter()
        .find(|path| opening.files.id(path).is_some())
        .or(paths.first());
    let path = there.cloned().unwrap_or_default();
    let image = opening.parent(&path, None)?;
    match contradiction(descriptor, cid, &image.identity()) {
        None => Ok((path, image)),
        Some(what) => Err(refuse(format!("`{}` {what}", path.display()))),
    }
}

/// What tells that the image is not the parent, or not as it was. What one of the two does not know tells nothing.
fn contradiction(descriptor: &Descriptor, cid: u32, identity: &Identity) -> Option<String> {
    let differ = |a: crate::Uuid, b: crate::Uuid| !a.is_zero() && !b.is_zero() && a != b;
    if differ(descriptor.parent_uuid, identity.uuid) {
        return Some("is not its parent: the identifiers differ".to_owned());
    }
    let other = identity.cid.filter(|&other| other != cid);
    if let Some(other) = other {
        return Some(format!(
            "is its parent, but was written to since (CID {other:08x}, not {cid:08x}); what the child has no longer fits"
        ));
    }
    differ(descriptor.parent_modified, identity.modified)
        .then(|| "is its parent, but was written to since; what the child has no longer fits".to_owned())
}
