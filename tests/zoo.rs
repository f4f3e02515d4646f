//! One test per export of the zoo: baked logits and the stream against PyTorch with hooks on the same weights.

#[path = "common/mod.rs"]
mod common;
#[path = "common/zoo.rs"]
#[allow(dead_code, reason = "the table of `tools/architectures.rs` shows the rest")]
mod zoo;

use lancet::runtime::session::{Device, Runtime};
use libtest_mimic::{Arguments, Failed, Trial};

use zoo::{Entry, Outcome};

fn main() {
    let arguments = Arguments::from_args();
    let trials = zoo::entries()
        .into_iter()
        .filter(|entry| entry.model.is_some())
        .enumerate()
        .map(|(index, entry)| {
            let name = format!("{}::{}", entry.arch, entry.exporter);
            Trial::test(name, move || check(&entry)).with_ignored_flag(common::is_left_out(index, 3))
        })
        .collect();
    libtest_mimic::run(&arguments, trials).exit();
}

fn check(entry: &Entry) -> Result<(), Failed> {
    let runtime = Runtime::load(&common::onnxruntime_library(), Device::Cpu, 1)?;
    let edited = match zoo::check(entry, &runtime) {
        Outcome::Edited(edited) => edited,
        Outcome::Refused(reason) => return Err(format!("refused: {reason}").into()),
    };
    if !edited.failures.is_empty() {
        return Err(edited.failures.join("; ").into());
    }
    let wanted = (entry.told_embeddings(), entry.attn, entry.mlp);
    if edited.writers != wanted {
        return Err(format!("{:?} writers (embeddings, attention, MLP), not {wanted:?}", edited.writers).into());
    }
    if !entry.runs() {
        return Ok(());
    }
    let (stream, logits, relative) = zoo::bounds(&entry.dtype);
    // what the exporter itself changed is no matter of the edit
    let own = entry.base_error.unwrap_or(0.0);
    let like_pytorch = edited.stream_error <= stream
        && edited.logits_error <= logits + own
        && edited.logits_relative <= relative + own;
    let within = (entry.is_quantised() || like_pytorch) && edited.ablation_relative <= relative;
    if let Some(zoo::Alone::Edited { exact, logits_relative, leak }) = edited.alone {
        // orthogonal in any case, equal to PyTorch where only copies were needed
        // a grid of a few bits leaves a little
        let stream = if entry.is_quantised() { 1e-3 } else { stream };
        if leak > stream || (exact && !entry.is_quantised() && logits_relative > relative + own) {
            return Err(format!(
                "--weights-only leaves {leak:.1e} of the direction in the stream, logits are off by {logits_relative:.1e}"
            )
            .into());
        }
    }
    match within {
        true => Ok(()),
        false => Err(format!(
            "stream off by {:.1e} of its largest value, logits by {:.1e} ({:.1e} relative); the export's own are off by {own:.1e}; \
             from run-time ablation by {:.1e} relative",
            edited.stream_error, edited.logits_error, edited.logits_relative, edited.ablation_relative
        )
        .into()),
    }
}
