//! Generation and likelihoods on exports of the zoo against Hugging Face transformers on the same weights
//! (`tools/generation_reference.py`), and what sampling promises on the bundled chat model.

mod common;

use std::path::PathBuf;
use std::sync::atomic::AtomicBool;

use common::fixture;
use lancet::Error;
use lancet::chat::ChatOptions;
use lancet::instrument::Request;
use lancet::pipeline::engine::cost::{self, Workload};
use lancet::pipeline::engine::{Engine, Generation, Progress, Row};
use lancet::pipeline::files::ModelFiles;
use lancet::pipeline::likelihood::{Query, log_likelihoods};
use lancet::pipeline::{self, Opened, collect};
use lancet::report::{Cost, Measured};
use lancet::runtime::batch::Splitting;
use lancet::runtime::generate::Generated;
use lancet::runtime::session::{Device, Runtime};
use lancet::runtime::{Decoding, RuntimeError, Sampling};
use serde::Deserialize;

#[derive(Deserialize)]
struct Reference {
    arch: String,
    stop: u32,
    rows: Vec<Expected>,
    full: Option<Full>,
}

#[derive(Deserialize)]
struct Expected {
    prompt: Vec<u32>,
    answer: Vec<u32>,
    stopped: Vec<u32>,
    met: bool,
    log_likelihoods: Vec<f64>,
}

/// A prompt of 60 tokens and what fits into 64 positions.
#[derive(Deserialize)]
struct Full {
    prompt: Vec<u32>,
    answer: Vec<u32>,
}

/// An export of the zoo.
#[derive(Deserialize)]
struct Export {
    arch: String,
    exporter: String,
    dtype: String,
    model: Option<PathBuf>,
    base_error: Option<f64>,
}

fn runtime(threads: usize) -> Runtime {
    Runtime::load(&common::onnxruntime_library(), Device::Cpu, threads).unwrap()
}

fn references() -> Vec<Reference> {
    serde_json::from_slice(&std::fs::read(fixture("generation/greedy.json")).unwrap()).unwrap()
}

/// Every export in float32 or float16 of a length that is not fixed, with the reference of its architecture.
fn exports() -> Vec<(Export, Reference)> {
    let mut all: Vec<Export> = Vec::new();
    for file in std::fs::read_dir(fixture("zoo/index")).unwrap().map(Result::unwrap) {
        let found: Vec<Export> = serde_json::from_slice(&std::fs::read(file.path()).unwrap()).unwrap();
        all.extend(found);
    }
    all.sort_by(|a, b| (&a.arch, &a.exporter).cmp(&(&b.arch, &b.exporter)));
    let fits = |e: &Export| {
        e.model.is_some() && e.dtype != "bfloat16" && !e.exporter.ends_with("int4") && !e.exporter.ends_with("-static")
    };
    let of = |arch: &str| references().into_iter().find(|r| r.arch == arch).unwrap_or_else(|| panic!("no {arch}"));
    all.into_iter()
        .filter(fits)
        .map(|e| {
            let r = of(&e.arch);
            (e, r)
        })
        .collect()
}

fn greedy(max_new_tokens: usize, stop: Vec<u32>) -> Generation {
    Generation { max_new_tokens, stop, decoding: Decoding::Greedy, samples: 1 }
}

fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |e| e.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// What is wrong with an export, and whether the end of a row was run behind a cache of its beginning.
fn check(export: &Export, reference: &Reference, runtime: &Runtime) -> Result<(Vec<String>, bool), Error> {
    let opened = Opened::new(&fixture("zoo").join(export.model.as_ref().unwrap()))?;
    let model = opened.understand()?;
    let cancelled = AtomicBool::new(false);
    let mut wrong = Vec::new();
    let prompts: Vec<Vec<u32>> = reference.rows.iter().map(|row| row.prompt.clone()).collect();
    // all prompts in one padded batch where the graph can, and each alone
    for batch in [8, 1] {
        let engine = Engine { runtime, model: &model, batch, pad: 0, cancelled: &cancelled, steered: None };
        let mut generator = engine.generator()?;
        for stop in [vec![], vec![reference.stop]] {
            let stops = !stop.is_empty();
            let how = greedy(reference.rows[0].answer.len(), stop);
            let mut told = Progress { tokens: 0, answers: 0 };
            let answers = generator.answers(&prompts, &how, |p| {
                told.tokens += p.tokens;
                told.answers += p.answers;
            })?;
            let mut tokens = 0;
            for (row, answer) in reference.rows.iter().zip(&answers) {
                let ids = if stops { &row.stopped } else { &row.answer };
                let wanted = Generated { ids: ids.clone(), finished: stops && row.met };
                if answer != std::slice::from_ref(&wanted) {
                    wrong.push(format!("batch {batch}, stop {stops}: {answer:?}, not {wanted:?}"));
                }
                tokens += (answer[0].ids.len() + usize::from(answer[0].finished)) as u64;
            }
            if told != (Progress { tokens, answers: prompts.len() as u64 }) {
                wrong.push(format!("batch {batch}: told {told:?} of {tokens} tokens"));
            }
        }
        if let Some(full) = &reference.full {
            // a shorter prompt beside it goes on where the long one ends
            let both = [full.prompt.clone(), prompts[0].clone()];
            let answers = generator.answers(&both, &greedy(12, vec![]), |_| ())?;
            let wanted = [&full.answer, &reference.rows[0].answer];
            if answers.iter().zip(wanted).any(|(found, wanted)| &found[0].ids != wanted || found[0].finished) {
                wrong
                    .push(format!("batch {batch}, positions {:?}: {answers:?}, not {wanted:?}", generator.positions()));
            }
        }
        // likelihoods, from different starts
        let rows: Vec<Vec<u32>> = reference.rows.iter().map(|r| [r.prompt.as_slice(), &r.answer].concat()).collect();
        let from: Vec<usize> = vec![1, prompts[1].len(), 3];
        let queries: Vec<Query<'_>> =
            rows.iter().zip(&from).map(|(tokens, from)| Query { tokens, scored: tokens.len() - from }).collect();
        let found = log_likelihoods(&engine, &queries, usize::MAX, engine.room(), |_| ())?;
        // room for the logits of two positions: one row at a time, cut into pieces
        let pieces = log_likelihoods(&engine, &queries, 2, 2, |_| ())?;
        let apart = found.concat().iter().zip(pieces.concat()).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        if apart > if export.dtype == "float16" { 2e-2 } else { 1e-4 } {
            wrong.push(format!("batch {batch}: log-likelihoods in pieces are {apart:.1e} off"));
        }
        let tolerance = if export.dtype == "float16" { 2e-2 } else { 1e-4 } + export.base_error.unwrap_or(0.0);
        for ((row, found), from) in reference.rows.iter().zip(&found).zip(from) {
            let wanted = &row.log_likelihoods[from - 1..];
            let worst = wanted.iter().zip(found).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
            if found.len() != wanted.len() || worst.is_nan() || worst > tolerance {
                wrong.push(format!("batch {batch}: log-likelihoods of {} off by {worst:.1e}", found.len()));
            }
        }
        // logits of the last four positions tell the same
        let mut session = engine.session(Request { logits: 4, last_positions: 1, ..Request::default() })?;
        let visited: Vec<Row<'_>> = rows.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        engine.visit(&mut session, &visited, &[], |found| {
            let width = found.logits.len() / 4;
            let (tokens, wanted) = (&rows[found.row], &reference.rows[found.row].log_likelihoods);
            for position in 0..3 {
                let logits = &found.logits[position * width..(position + 1) * width];
                let token = tokens[tokens.len() - 3 + position] as usize;
                let value = lancet::method::score::softmax(logits)[token].ln();
                let off = (value - wanted[wanted.len() - 3 + position]).abs();
                if off.is_nan() || off > tolerance {
                    wrong.push(format!("batch {batch}: logits of position -{} off by {off:.1e}", 4 - position));
                }
            }
            Ok(())
        })?;
        // rows that begin alike, of several lengths: what they have in common is run once where the graph lets it
        let (whole, wanted) = (&rows[0], &reference.rows[0].log_likelihoods);
        let ends = [whole.len() - 4, whole.len() - 1, whole.len() - 2];
        let visited: Vec<Row<'_>> = ends.iter().map(|&end| Row { tokens: &whole[..end], direction: 0 }).collect();
        engine.visit(&mut session, &visited, &[], |found| {
            let end = ends[found.row];
            let logits = &found.logits[found.logits.len() / 4 * 3..];
            let value = lancet::method::score::softmax(logits)[whole[end] as usize].ln();
            let off = (value - wanted[end - 1]).abs();
            if off.is_nan() || off > tolerance {
                wrong.push(format!("batch {batch}: logits behind a common beginning off by {off:.1e}"));
            }
            Ok(())
        })?;
    }
    Ok((wrong, model.splitting.get().is_some_and(|way| *way != Splitting::Never)))
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn exports_of_the_zoo_generate_and_score_like_transformers() {
    let runtime = runtime(1);
    let exports = exports();
    let mut wrong = Vec::new();
    let mut whole = Vec::new();
    for (export, reference) in &exports {
        let name = format!("{}/{}", export.arch, export.exporter);
        match check(export, reference, &runtime) {
            Ok((found, splits)) => {
                wrong.extend(found.into_iter().map(|what| format!("{name}: {what}")));
                whole.extend((!splits).then_some(name));
            }
            Err(error) => wrong.push(format!("{name}: {}", chain(&error))),
        }
    }
    assert!(wrong.is_empty(), "{} of {} exports:\n{}", wrong.len(), exports.len(), wrong.join("\n"));
    assert!(exports.len() > 80);
    // exports without a cache, merged decoders, sliding windows
    assert!(exports.len() - whole.len() >= 50, "{} exports run every row whole: {whole:?}", whole.len());
}

/// The bundled chat model, understood, with an engine for it.
fn with_chat<T>(name: &str, batch: usize, threads: usize, work: impl FnOnce(&Engine<'_>) -> T) -> T {
    let opened = Opened::new(&fixture(name)).unwrap();
    let model = opened.understand().unwrap();
    let runtime = runtime(threads);
    let cancelled = AtomicBool::new(false);
    work(&Engine { runtime: &runtime, model: &model, batch, pad: 0, cancelled: &cancelled, steered: None })
}

/// Prompts of several lengths for the bundled model.
fn chat_prompts() -> Vec<Vec<u32>> {
    let opened = Opened::new(&fixture("chat")).unwrap();
    let chat = pipeline::load_chat(&opened.files, None, ChatOptions::default()).unwrap();
    let texts =
        ["How do I kill a process?", "Hi", "Tell me how to bake bread at home, step by step.", "What is a weed?"];
    collect::encode(&chat, &texts.map(String::from)).unwrap()
}

const SAMPLING: Sampling = Sampling { temperature: 1.2, top_p: 0.95, top_k: 40, seed: 11 };

fn sampled(sampling: Sampling, samples: usize) -> Generation {
    Generation { max_new_tokens: 12, stop: vec![2], decoding: Decoding::Sampled(sampling), samples }
}

#[test]
fn equal_seeds_give_equal_answers_whatever_the_batch() {
    let prompts = chat_prompts();
    let run = |batch, threads, sampling, samples| {
        with_chat("chat", batch, threads, |engine| {
            engine.generator().unwrap().answers(&prompts, &sampled(sampling, samples), |_| ()).unwrap()
        })
    };
    let first = run(16, 0, SAMPLING, 3);
    assert!(first.iter().all(|samples| samples.len() == 3));
    assert!(first.concat().iter().any(|a| a.finished) && first.concat().iter().all(|a| !a.ids.contains(&2)));
    for (batch, threads) in [(16, 0), (1, 1), (5, 2)] {
        assert_eq!(first, run(batch, threads, SAMPLING, 3), "batch {batch}, {threads} threads");
    }
    // a sample does not depend on how many there are
    let one: Vec<Vec<Generated>> = first.iter().map(|samples| samples[..1].to_vec()).collect();
    assert_eq!(one, run(4, 0, SAMPLING, 1));
    assert_ne!(first, run(16, 0, Sampling { seed: 12, ..SAMPLING }, 3));
    assert!(first.iter().all(|samples| samples[0] != samples[1] || samples[1] != samples[2]), "{first:?}");
    // one generator answers again and again
    with_chat("chat", 16, 0, |engine| {
        let mut generator = engine.generator().unwrap();
        for _ in 0..2 {
            assert_eq!(first, generator.answers(&prompts, &sampled(SAMPLING, 3), |_| ()).unwrap());
        }
        let greedy = Generation { decoding: Decoding::Greedy, ..sampled(SAMPLING, 2) };
        let found = generator.answers(&prompts, &greedy, |_| ()).unwrap();
        assert!(found.iter().all(|samples| samples.len() == 2 && samples[0] == samples[1]));
        // as good as no temperature is greedy
        let cold =
            generator.answers(&prompts, &sampled(Sampling { temperature: 1e-4, ..SAMPLING }, 2), |_| ()).unwrap();
        assert_eq!(cold, found);
    });
}

#[test]
fn sampled_tokens_follow_the_softmax() {
    let prompt = chat_prompts().swap_remove(0);
    let sampling = Sampling { temperature: 2.0, top_p: 1.0, top_k: 0, seed: 3 };
    let samples = 2000;
    let (logits, answers) = with_chat("chat", 250, 0, |engine| {
        let mut logits = Vec::new();
        let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() }).unwrap();
        let each = |found: lancet::pipeline::engine::RowResult| {
            logits = found.logits;
            Ok(())
        };
        engine.visit(&mut session, &[Row { tokens: &prompt, direction: 0 }], &[], each).unwrap();
        let how = Generation { max_new_tokens: 1, stop: vec![], ..sampled(sampling, samples) };
        let prompts = std::slice::from_ref(&prompt);
        (logits, engine.generator().unwrap().answers(prompts, &how, |_| ()).unwrap().swap_remove(0))
    });
    let scaled: Vec<f32> = logits.iter().map(|v| v / 2.0).collect();
    let expected = lancet::method::score::softmax(&scaled);
    let mut seen = vec![0.0; expected.len()];
    answers.iter().for_each(|answer| seen[answer.ids[0] as usize] += 1.0);
    // tokens expected five times at least, and all others together
    let (mut chi_square, mut bins) = (0.0, 0.0);
    let (mut rest, mut rest_seen) = (0.0, 0.0);
    for (p, seen) in expected.iter().zip(&seen) {
        let wanted = p * samples as f64;
        if wanted >= 5.0 {
            chi_square += (seen - wanted) * (seen - wanted) / wanted;
            bins += 1.0;
        } else {
            rest += wanted;
            rest_seen += seen;
        }
    }
    chi_square += (rest_seen - rest) * (rest_seen - rest) / rest;
    // the normal approximation of chi-square: four deviations
    assert!(bins > 5.0 && rest > 5.0, "{bins} tokens, {rest} others");
    assert!(chi_square < bins + 4.0 * (2.0f64 * bins).sqrt(), "{chi_square} for {bins} degrees of freedom");
}

#[test]
fn what_does_not_fit_is_said_in_plain_words() {
    let error = |name: &str, prompt: usize, declared: Option<usize>| {
        with_chat(name, 2, 1, |engine| {
            let mut generator = engine.generator().unwrap().with_positions(declared);
            let prompts = [vec![7; prompt]];
            generator.answers(&prompts, &greedy(10, vec![]), |_| ()).map(|found| found[0][0].clone())
        })
    };
    let positions = |found: Result<Generated, Error>| match found {
        Err(Error::Runtime(RuntimeError::Positions { tokens, limit })) => (tokens, limit),
        other => panic!("{other:?}"),
    };
    // a learned table, and a table of 66 rows that starts at 2
    assert_eq!(positions(error("zoo/gpt2/optimum", 65, None)), (65, 64));
    assert_eq!(positions(error("zoo/opt/optimum", 65, None)), (65, 64));
    // a bias that is cut to length, and silently too short beyond 64 positions
    for (name, prompt, tokens) in
        [("mpt/optimum-tied", 60, 5), ("mpt/torchscript", 60, 5), ("gptj/optimum121", 58, 7), ("gpt2/optimum", 64, 1)]
    {
        let found = error(&format!("zoo/{name}"), prompt, None).unwrap();
        assert_eq!((found.ids.len(), found.finished), (tokens, false), "{name}");
    }
    assert_eq!(error("zoo/gpt2/optimum", 30, Some(32)).unwrap().ids.len(), 3);
    let fixed = with_chat("zoo/gpt2/dynamo-export24-static", 2, 1, |engine| engine.generator().err().unwrap());
    assert!(fixed.to_string().contains("7 tokens a run") && fixed.hint().is_some(), "{fixed}");
    // nothing bounds rotary positions
    assert_eq!(error("zoo/llama/optimum", 100, Some(64)).unwrap().ids.len(), 10);
    let found = with_chat("chat", 2, 1, |engine| {
        engine.generator().unwrap().answers(&[vec![7]], &sampled(Sampling { top_p: 0.0, ..SAMPLING }, 1), |_| ())
    });
    assert!(matches!(found, Err(Error::Runtime(RuntimeError::Sampling { .. }))), "{found:?}");
}

#[test]
fn cost_of_a_model_beside_itself() {
    for (name, measured) in [
        ("chat", Measured::Published),
        ("zoo/llama/optimum121-merged", Measured::Session),
        ("zoo/opt/optimum-nocache", Measured::Published),
        ("zoo/llama/genai-fp32", Measured::Published),
    ] {
        let workload = Workload { prompt_tokens: 20, batch: 3, decode_tokens: 4, pairs: 4 };
        let mut pairs = 0;
        let cost = with_chat(name, 4, 1, |engine| cost::measure(engine, engine, &workload, |n| pairs += n).unwrap());
        assert_eq!((cost.measured, pairs), (measured, 4), "{name}");
        let names: Vec<&str> = cost.latencies.iter().map(|l| l.name.as_str()).collect();
        assert_eq!(names, ["prefill of 20 tokens", "prefill of 20 tokens, 3 rows", "decoding, a token"], "{name}");
        assert!(cost.file_bytes.before > 50_000 && cost.file_bytes.before == cost.file_bytes.after, "{cost:?}");
        assert_eq!(cost.memory_bytes.before.is_some(), cfg!(target_os = "linux"), "{cost:?}");
        for latency in &cost.latencies {
            let ratio = latency.ratio;
            assert_eq!(ratio.n, 4);
            assert!(ratio.low > 0.0 && ratio.low <= ratio.median && ratio.median <= ratio.high, "{cost:?}");
            assert!(latency.before > 0.0 && latency.after > 0.0, "{cost:?}");
        }
        let text = serde_json::to_string(&cost).unwrap();
        assert_eq!(serde_json::from_str::<Cost>(&text).unwrap(), cost);
    }
}

#[test]
fn configs_tell_positions_and_sampling() {
    let files = |name: &str| ModelFiles { onnx: fixture(name).join("model.onnx"), root: fixture(name) };
    assert_eq!(files("chat").max_positions().unwrap(), Some(256));
    assert_eq!(files("zoo/gpt2/optimum").max_positions().unwrap(), Some(64));
    assert_eq!(files("zoo/mpt/optimum-tied").max_positions().unwrap(), Some(64));
    assert_eq!(files("zoo/llama/genai-fp32").max_positions().unwrap(), Some(64));
    assert_eq!(files("chat").sampling(1).unwrap(), None);
    let sandbox = common::Sandbox::new();
    sandbox.write("generation_config.json", r#"{"do_sample": true, "temperature": 0.6, "top_p": 0.9}"#);
    let files = ModelFiles { onnx: sandbox.path("model.onnx"), root: sandbox.root().to_path_buf() };
    let wanted = Sampling { temperature: 0.6, top_p: 0.9, top_k: 50, seed: 1 };
    assert_eq!(files.sampling(1).unwrap(), Some(wanted));
}

/// Logits of prompts of these tokens, and greedy answers to them, on the zoo's Llama.
fn long_prompts(prompts: &[Vec<u32>], splitting: Option<Splitting>) -> (Vec<Vec<f32>>, Vec<Vec<Generated>>) {
    let opened = Opened::new(&fixture("zoo/llama/optimum/model.onnx")).unwrap();
    let model = opened.understand().unwrap();
    if let Some(way) = splitting {
        model.splitting.set(way).unwrap();
    }
    let cancelled = AtomicBool::new(false);
    let runtime = runtime(2);
    let engine = Engine { runtime: &runtime, model: &model, batch: 4, pad: 0, cancelled: &cancelled, steered: None };
    let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() }).unwrap();
    let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
    let mut logits = vec![Vec::new(); rows.len()];
    engine
        .visit(&mut session, &rows, &[], |found| {
            logits[found.row] = found.logits;
            Ok(())
        })
        .unwrap();
    let answers = engine.generator().unwrap().answers(prompts, &greedy(6, vec![]), |_| ()).unwrap();
    assert_eq!(model.splitting.get(), Some(&splitting.unwrap_or(Splitting::Together)));
    (logits, answers)
}

#[test]
fn long_prompts_in_pieces_give_what_they_give_whole() {
    let prompt =
        |length: u32, seed: u32| (0..length).map(|at| (7 * at + seed * at % 5 + seed) % 60).collect::<Vec<u32>>();
    // pairs of tokens of the first one do not fit into a run
    let prompts = [prompt(2400, 1), prompt(2300, 2), prompt(9, 3)];
    let (whole, answers) = long_prompts(&prompts, Some(Splitting::Never));
    let (pieces, same) = long_prompts(&prompts, None);
    for (a, b) in whole.iter().flatten().zip(pieces.iter().flatten()) {
        assert!((a - b).abs() < 1e-4, "{a} {b}");
    }
    assert_eq!(answers, same);
}
