//! The rounding of quantised weights without an output: what it leaves and costs, to tell which writers
//! [`super::limits`] gives to nodes. `verify` computes that from the base, whatever an output says of itself.

use std::sync::atomic::{AtomicBool, Ordering};

use super::apply::EditResult;
use super::elements::Elements;
use super::error::BakeError;
use super::plan::BakePlan;
use super::quantised::{self, Tables};
use super::tensor::{Measured, Write};
use crate::onnx::Model;

/// The edits of all quantised weights of a plan, as [`super::apply`] would report them, but for their hashes.
///
/// # Errors
/// If the model cannot be read, on NaN or infinity in a weight, and on cancellation.
pub fn rehearse(model: &Model, plan: &BakePlan, cancelled: &AtomicBool) -> Result<Vec<EditResult>, BakeError> {
    let mut made: Vec<Option<Measured>> = vec![None; plan.tensors.len()];
    let mut edits = Vec::new();
    // one after the other: each is rounded by all threads
    for (index, edit) in plan.tensors.iter().enumerate() {
        let Some(quantised) = &edit.quantised else { continue };
        if let Some(found) = edit.same_bytes_as.and_then(|other| made[other].clone()) {
            edits.push(EditResult::of(edit, &found));
            continue;
        }
        let unread = || BakeError::Unsupported { tensor: edit.name.clone(), reason: "it has no stored codes".into() };
        let codes = Elements::open(model, model.tensor(edit.tensor), false)?.ok_or_else(unread)?;
        let tables = Tables::open(model, quantised, &edit.name)?;
        let read = |block: &mut [u8], at: u64| match cancelled.load(Ordering::Relaxed) {
            true => Err(BakeError::Cancelled),
            false => codes.read(block, at),
        };
        let mut scales = |_: &[u8], _: u64| Ok(());
        let found = quantised::edit(
            &edit.name,
            quantised,
            &plan.directions(edit),
            &tables,
            &read,
            &mut |_, _| Ok(()),
            edit.scales().is_some().then_some(&mut scales as Write<'_>),
        )?;
        let found = Measured::from(found);
        edits.push(EditResult::of(edit, &found));
        made[index] = Some(found);
    }
    Ok(edits)
}
