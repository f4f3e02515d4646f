//! Writes the table of architectures and exporters, measured now: `cargo run --release --example architectures > docs/architectures.md`.

use std::collections::BTreeMap;
use std::fmt::Write;

use lancet::runtime::locate::{Environment, Flavour, Options, install, locate};
use lancet::runtime::session::{Device, Runtime};

#[path = "../tests/common/zoo.rs"]
#[allow(dead_code, reason = "`tests/zoo.rs` checks the rest")]
mod zoo;

use zoo::{Alone, Entry, Outcome};

fn main() {
    let environment = Environment::process();
    let options = Options { explicit: None, flavour: Flavour::Cpu, environment: &environment };
    let library = match locate(&options).expect("ONNX Runtime can be looked for") {
        Some(found) => found.path,
        None => install(Flavour::Cpu, &mut |_| {}).expect("ONNX Runtime can be installed").path,
    };
    let runtime = Runtime::load(&library, Device::Cpu, 1).expect("ONNX Runtime loads");
    let entries = zoo::entries();
    let (exported, failed): (Vec<&Entry>, Vec<&Entry>) = entries.iter().partition(|e| e.model.is_some());
    let outcomes: Vec<(&Entry, Outcome)> = exported.iter().map(|entry| (*entry, zoo::check(entry, &runtime))).collect();
    print!("{}", page(&outcomes, &failed));
}

/// Whether an outcome is exact: it differs from PyTorch with hooks by no more than its precision allows.
fn is_exact(entry: &Entry, outcome: &Outcome) -> Option<bool> {
    let Outcome::Edited(edited) = outcome else { return None };
    if !entry.runs() {
        return None;
    }
    let (stream, logits, relative) = zoo::bounds(&entry.dtype);
    let own = entry.base_error.unwrap_or(0.0);
    let like_pytorch = edited.stream_error <= stream
        && edited.logits_error <= logits + own
        && edited.logits_relative <= relative + own;
    let exact = (entry.is_quantised() || like_pytorch) && edited.ablation_relative <= relative;
    Some(exact && edited.failures.is_empty())
}

fn page(outcomes: &[(&Entry, Outcome)], failed: &[&Entry]) -> String {
    let mut out = String::from(
        "# Architectures and exporters\n\n\
         Made by `cargo run --release --example architectures`; `cargo test --test zoo` holds every line of it. Each \
         row is a small random model in `fixtures/zoo`, exported by the real exporter, edited by Lancet and run in \
         ONNX Runtime. *Logits* is the largest difference of the edited file from PyTorch (float64) with a hook on \
         every module that writes to the residual stream; *stream* that of the stream entering every layer of the \
         unedited file, over its largest value. *By weights* and *by nodes* count writers; *weights only* is the same \
         difference with `--weights-only`, over the largest logit, where writers need nodes otherwise: a copy of a \
         shared tensor is exact, an edit through a norm is not.\n\n",
    );
    let count = |wanted: Option<bool>| outcomes.iter().filter(|(e, o)| is_exact(e, o) == wanted).count();
    let refused = outcomes.iter().filter(|(_, o)| matches!(o, Outcome::Refused(_))).count();
    let _ = writeln!(
        out,
        "{} combinations of {} architectures and {} exporters: {} exact, {} wrong, {refused} refused, {} edited and \
         not run.\n",
        outcomes.len(),
        distinct(outcomes, |e| &e.arch),
        distinct(outcomes, |e| &e.exporter),
        count(Some(true)),
        count(Some(false)),
        count(None) - refused,
    );
    let _ = writeln!(
        out,
        "| architecture | exporter | dtype | by weights | by nodes | result | logits | stream | weights only |\n\
         |---|---|---|--:|--:|---|--:|--:|---|"
    );
    for (entry, outcome) in outcomes {
        let _ = writeln!(out, "| {} | {} | {} | {} |", entry.arch, entry.exporter, entry.dtype, cells(entry, outcome));
    }
    out.push_str(
        "\n`bfloat16` runs in float32 on the CPU (its provider has no bfloat16 products). Quantised exports are \
         compared with run-time ablation of the same file instead of PyTorch's float weights.\n\n\
         ## What failed to export\n\n\
         With the versions in `tools/zoo/README.md`.\n\n| exporter | architecture | error |\n|---|---|---|\n",
    );
    for entry in failed {
        let error = entry.error.as_deref().unwrap_or("").replace('|', "\\|").replace('`', "'");
        let _ = writeln!(out, "| {} | {} | `{}` |", entry.exporter, entry.arch, error.trim());
    }
    out
}

fn distinct<'a>(outcomes: &[(&'a Entry, Outcome)], key: impl Fn(&'a Entry) -> &'a String) -> usize {
    outcomes.iter().map(|(entry, _)| (key(entry), ())).collect::<BTreeMap<_, _>>().len()
}

fn cells(entry: &Entry, outcome: &Outcome) -> String {
    let edited = match outcome {
        Outcome::Edited(edited) => edited,
        Outcome::Refused(reason) => return format!("| | refused: {} | | |", reason.replace('|', "\\|")),
    };
    let result = match is_exact(entry, outcome) {
        Some(true) => "exact",
        Some(false) => "**wrong**",
        None => "edited, not run",
    };
    let alone = match &edited.alone {
        None => "as it is".to_string(),
        Some(Alone::Edited { exact: true, logits_relative, .. }) if entry.is_quantised() => {
            let _ = logits_relative;
            "by copies".to_string()
        }
        Some(Alone::Edited { exact: true, logits_relative, .. }) => format!("by copies, {}", power(*logits_relative)),
        Some(Alone::Edited { exact: false, logits_relative, .. }) => format!("through norms, {logits_relative:.3}"),
        Some(Alone::Refused(_)) => "refused".to_string(),
    };
    let (logits, stream) = match entry.runs() {
        false => (String::new(), String::new()),
        true if entry.is_quantised() => (format!("{} (own)", power(edited.ablation_relative)), String::new()),
        true => (power(edited.logits_error), power(edited.stream_error)),
    };
    format!("{} | {} | {result} | {logits} | {stream} | {alone}", edited.weights, edited.nodes)
}

/// A small number rounded up to one digit, so that the table does not change with the machine's last bits.
fn power(value: f64) -> String {
    if value == 0.0 || !value.is_finite() {
        return value.to_string();
    }
    let exponent = value.log10().floor();
    match (value / 10f64.powf(exponent)).ceil() {
        10.0 => format!("1e{:.0}", exponent + 1.0),
        digit => format!("{digit:.0}e{exponent:.0}"),
    }
}
