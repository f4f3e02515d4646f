//! What stands in the way of a package: files that no edit reaches and that would stay beside the edited models, and models
//! that are copied and read what an edit changes. Both the bake and its proof ask.

use std::path::{Component, Path, PathBuf};

use super::bytes::equal;
use super::package::{Other, Package, shown};
use super::walk::Left;
use crate::error::Error;
use crate::onnx::{Model, Storage};

/// Refuses links that lead elsewhere, and files that hold weights which no edit reaches.
///
/// # Errors
/// The first of them, with its name and what to do.
pub(super) fn unhindered(package: &Package) -> Result<(), Error> {
    if let Some(Left { relative, reason }) = package.refused.first() {
        return Err(Error::failed_with(
            format!("`{}` is {reason}: nothing of it is read or published", shown(relative)),
            "take it out of the model's folder, or put the file that is meant in its place",
        ));
    }
    package.hindrances.first().map_or(Ok(()), |hindrance| Err(hindrance.error()))
}

/// The first file, relative to the package, that holds other bytes in an output than in `package` where a model that is
/// not baked reads them. `written` tells which files a bake writes, `place` where they are in the output.
///
/// # Errors
/// If a file cannot be read.
pub(super) fn affected(
    package: &Package,
    other: &Other,
    written: impl Fn(&Path) -> bool,
    place: impl Fn(&Path) -> PathBuf,
) -> Result<Option<PathBuf>, Error> {
    if !other.reads.iter().any(|path| written(path)) {
        return Ok(None);
    }
    if written(&other.relative) {
        return Ok(Some(other.relative.clone()));
    }
    let model = Model::open(&package.root.join(&other.relative))?;
    let folder = other.relative.parent().unwrap_or(Path::new(""));
    for tensor in &model.tensors {
        let Storage::External { location, path, offset, length } = &tensor.storage else { continue };
        let plain = Path::new(location).components().filter(|part| matches!(part, Component::Normal(_)));
        let relative = folder.join(plain.collect::<PathBuf>());
        if written(&relative) && !equal(path, &place(&relative), Some(*offset..offset + length))? {
            return Ok(Some(relative));
        }
    }
    Ok(None)
}
