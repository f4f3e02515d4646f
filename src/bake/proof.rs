//! What the comparison of two model files found.

use std::path::PathBuf;

use serde::Serialize;

use super::findings::Findings;
use super::metadata::Claim;
use super::plan::BakePlan;

/// Largest distance of an edited value from the exact one, in spacings of its type, in the check by plain float64 that
/// is made beside the comparison of bytes. It is 1, as an entry may go to its second-nearest value.
const MAX_ULP: f64 = 1.0 + 1e-6;

/// The same for levels of a quantised weight, which are decoded in float32.
const MAX_LEVELS: f64 = 1.0 + 1e-3;

/// A place in a file.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Difference {
    /// The file of the output.
    pub file: PathBuf,
    /// First differing byte.
    pub offset: u64,
}

/// An edited tensor as the output holds it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TensorReport {
    /// Its name.
    pub initializer: String,
    /// `||r^T W'||` of the stored values.
    pub leak_after: f64,
    /// Largest difference from the exact `W - r r^T W`, in spacings of the element type or of the levels of a
    /// quantised weight; 0.5 is nearest rounding, up to 1 second-nearest.
    pub max_ulp: f64,
    /// Whether it is quantised.
    pub quantised: bool,
    /// Bytes of elements, or of codes and scales, that are not those that editing the base again gives.
    pub differing_bytes: u64,
    /// Whether the edit changes any value.
    pub changed: bool,
    /// Whether the output has the bytes of the base where the edit gives others.
    pub untouched: bool,
}

impl TensorReport {
    /// Whether it is what the edit gives, byte for byte.
    pub fn passed(&self) -> bool {
        let most = if self.quantised { MAX_LEVELS } else { MAX_ULP };
        self.leak_after.is_finite() && self.max_ulp <= most && self.differing_bytes == 0
    }
}

/// What [`super::verify_bytes`] found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ByteReport {
    /// Bytes that differ although the plan does not touch them, or differ from what it inserts.
    pub changed_bytes_outside_plan: u64,
    /// The first of them, in the order of the files.
    pub first_difference: Option<Difference>,
    /// `lancet.*` metadata entries at the end of the output that the plan has, or that may be there.
    pub metadata_entries: usize,
    /// Every difference by name.
    pub findings: Findings,
    /// What the output says of itself and the plan does not.
    pub claims: Vec<Claim>,
    /// What was not compared with anything, one sentence each.
    pub unchecked: Vec<String>,
    /// Tensors compared byte by byte through the two indices.
    pub tensors_compared: usize,
    /// How much the edit changes.
    pub extent: Extent,
    /// The edited tensors.
    pub tensors: Vec<TensorReport>,
}

impl ByteReport {
    /// Adds what was found in another file of the model.
    pub fn merge(&mut self, other: Self) {
        self.changed_bytes_outside_plan += other.changed_bytes_outside_plan;
        self.first_difference = self.first_difference.take().or(other.first_difference);
        self.metadata_entries += other.metadata_entries;
        self.findings.merge(other.findings);
        self.claims.extend(other.claims.into_iter().filter(|claim| !self.claims.contains(claim)).collect::<Vec<_>>());
        self.unchecked.extend(other.unchecked.into_iter().filter(|s| !self.unchecked.contains(s)).collect::<Vec<_>>());
        self.tensors_compared += other.tensors_compared;
        self.extent = self.extent.max(other.extent);
        self.tensors.extend(other.tensors);
    }

    /// Whether the output is what the plan makes of the base.
    pub fn passed(&self) -> bool {
        self.changed_bytes_outside_plan == 0
            && self.findings.is_empty()
            && self.tensors.iter().all(TensorReport::passed)
    }
}

/// How much an edit changes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Extent {
    /// No tensor is edited and no node added: there is nothing to check.
    Nothing,
    /// The output has every tensor that is to be edited as the base has it.
    Untouched,
    /// Every tensor comes out as it was although it keeps the direction: the share that is taken off is too small.
    Void,
    /// Every tensor comes out as it was because it keeps nothing that its type can tell from nothing.
    Already,
    /// Something changes.
    Edited,
}

impl Extent {
    /// Of a plan with so many writers by nodes, whose edited tensors were found like this.
    pub(super) fn of(plan: &BakePlan, by_nodes: usize, tensors: &[TensorReport]) -> Self {
        if !tensors.is_empty()
            && tensors.iter().all(|t| t.untouched || !t.changed)
            && tensors.iter().any(|t| t.untouched)
        {
            Self::Untouched
        } else if by_nodes > 0 || tensors.iter().any(|t| t.changed) {
            Self::Edited
        } else if tensors.is_empty() {
            Self::Nothing
        } else if plan.is_partial() || plan.tensors.iter().any(|edit| edit.plus.is_some()) {
            Self::Void
        } else {
            Self::Already
        }
    }
}
