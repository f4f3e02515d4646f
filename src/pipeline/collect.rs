//! Collecting: refusal scores, the filter, mean activations. Resumable, and kept in one safetensors file.

use std::collections::HashMap;
use std::path::Path;
use std::time::{Duration, Instant};

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use serde::{Deserialize, Serialize};

use super::engine::{Engine, Observer, Row, RowResult, Session};
use super::stage::Stage;
use crate::chat::Chat;
use crate::error::Error;
use crate::eval::refusal::REFUSAL_SUBSTRINGS;
use crate::instrument::Request;
use crate::lm::ResidPoint;
use crate::method::activations::ActivationMeans;
use crate::method::prompts::{PerClass, PromptClass, Prompts, Split};
use crate::method::score::{FirstTokens, automatic_refusal_tokens, refusal_score, softmax};
use crate::report::{RefusalToken, TokenChoice};

/// Fewer prompts than this a class after the filter give no usable mean.
const MIN_KEPT: usize = 4;

/// Prompts a class that the automatic choice of refusal tokens looks at.
const AUTOMATIC_SAMPLE: usize = 32;

/// Bytes of activations that are held between the automatic choice of refusal tokens and the filter.
const EARLY_BUDGET: usize = 256 << 20;

/// Refusal tokens that the automatic choice takes at most.
const AUTOMATIC_LIMIT: usize = 4;

/// What was collected, with all that selection needs.
#[derive(Debug, Clone)]
pub struct Activations {
    /// Means of each class.
    pub means: PerClass<ActivationMeans>,
    /// Everything else.
    pub info: Info,
}

/// The part of [`Activations`] that is kept as JSON in the file's metadata.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq)]
pub struct Info {
    /// SHA-256 of the model.
    pub model_sha256: String,
    /// What else must be equal for a partial file to be continued.
    pub fingerprint: String,
    /// Refusal tokens; empty where there are none.
    pub refusal_tokens: Vec<u32>,
    /// Whether they were given or chosen.
    pub refusal_tokens_chosen: TokenChoice,
    /// Post-instruction tokens, from position `-n_pos` on.
    pub suffix: Vec<u32>,
    /// Train refusal scores by class and prompt; `None` while not yet run. The file keeps them as a list of lists.
    #[serde(with = "in_order")]
    pub scores: PerClass<Vec<Option<f64>>>,
    /// The prompts.
    pub prompts: Prompts,
    /// System prompt.
    pub system: Option<String>,
}

/// Values by class as a list in the order of [`PromptClass::ALL`].
mod in_order {
    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::PerClass;

    pub fn serialize<T: Serialize, S: Serializer>(all: &PerClass<T>, serializer: S) -> Result<S::Ok, S::Error> {
        all.as_ref().into_array().serialize(serializer)
    }

    pub fn deserialize<'de, T: Deserialize<'de>, D: Deserializer<'de>>(from: D) -> Result<PerClass<T>, D::Error> {
        Ok(PerClass::from_array(<[T; 3]>::deserialize(from)?))
    }
}

impl Activations {
    /// The means of a class.
    pub fn of(&self, class: PromptClass) -> &ActivationMeans {
        self.means.get(class)
    }

    /// Writes the file, whole or not at all.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn save(&self, path: &Path) -> Result<(), Error> {
        let mut buffers = Vec::new();
        for (class, means) in self.means.iter() {
            let (n_pos, n_layers, d_model) = means.shape();
            let values = if means.count() == 0 { vec![0.0; n_pos * n_layers * d_model] } else { means.means() };
            let bytes: Vec<u8> = values.iter().flat_map(|v| v.to_le_bytes()).collect();
            buffers.push((format!("mean.{}", class.as_str()), vec![n_pos, n_layers, d_model], bytes));
        }
        let views: Vec<(String, TensorView<'_>)> = buffers
            .iter()
            .map(|(name, shape, bytes)| {
                (name.clone(), TensorView::new(Dtype::F64, shape.clone(), bytes).expect("the buffer fits the shape"))
            })
            .collect();
        let counts = self.means.as_ref().map(ActivationMeans::count).into_array();
        let metadata = HashMap::from([
            ("lancet.version".to_string(), env!("CARGO_PKG_VERSION").to_string()),
            ("lancet.activations".to_string(), serde_json::to_string(&self.info).expect("plain data")),
            ("lancet.counts".to_string(), serde_json::to_string(&counts).expect("plain data")),
        ]);
        let bytes = safetensors::serialize(views, Some(metadata))
            .map_err(|e| Error::failed(format!("cannot encode activations: {e}")))?;
        super::write_whole(path, &bytes)
    }

    /// Reads the file back.
    ///
    /// # Errors
    /// If it is none of ours, or damaged.
    pub fn load(path: &Path) -> Result<Self, Error> {
        let bad = |what: String| {
            Error::usage(format!("`{}` holds no activations: {what}", path.display()), "make one with `lancet collect`")
        };
        let bytes = crate::files::read(path, crate::files::MAX_ACTIVATIONS).map_err(|e| bad(e.to_string()))?;
        let (_, header) = SafeTensors::read_metadata(&bytes).map_err(|e| bad(e.to_string()))?;
        let metadata = header.metadata().clone().unwrap_or_default();
        let entry = |key: &str| metadata.get(key).ok_or_else(|| bad(format!("no `{key}` in its metadata")));
        let info: Info = serde_json::from_str(entry("lancet.activations")?).map_err(|e| bad(e.to_string()))?;
        let counts = serde_json::from_str(entry("lancet.counts")?).map_err(|e| bad(e.to_string()))?;
        let counts: PerClass<usize> = PerClass::from_array(counts);
        let tensors = SafeTensors::deserialize(&bytes).map_err(|e| bad(e.to_string()))?;
        let means = PerClass::try_from_fn(|class| {
            let view = tensors.tensor(&format!("mean.{}", class.as_str())).map_err(|e| bad(e.to_string()))?;
            let [n_pos, n_layers, d_model] = *view.shape() else {
                return Err(bad("a mean is not three-dimensional".into()));
            };
            if view.dtype() != Dtype::F64 {
                return Err(bad("means are not float64".into()));
            }
            let values: Vec<f64> =
                view.data().chunks_exact(8).map(|b| f64::from_le_bytes(b.try_into().expect("chunks of 8"))).collect();
            Ok(ActivationMeans::from_means(n_pos, n_layers, d_model, &values, *counts.get(class)))
        })?;
        Ok(Self { means, info })
    }
}

/// How refusal tokens are given.
#[derive(Debug, Clone, PartialEq)]
pub enum RefusalTokens {
    /// Chosen from what the model answers.
    Automatic,
    /// Ids; none where the model has no such tokens.
    Given(Vec<u32>),
}

/// Encodes the prompts of one class and split.
///
/// # Errors
/// If the template refuses a prompt.
pub fn encode(chat: &Chat, prompts: &[String]) -> Result<Vec<Vec<u32>>, Error> {
    prompts.iter().map(|p| chat.encode_prompt(p).map_err(Error::from)).collect()
}

/// What [`collect`] needs beside the engine.
#[derive(Clone, Copy)]
pub struct Inputs<'a> {
    /// Tokenizer and template.
    pub chat: &'a Chat,
    /// Prompts.
    pub prompts: &'a Prompts,
    /// Refusal tokens.
    pub refusal_tokens: &'a RefusalTokens,
    /// SHA-256 of the model.
    pub model_sha256: &'a str,
    /// Where a partial result is kept and found; `None` keeps none.
    pub partial: Option<&'a Path>,
}

/// Runs the train prompts, filters them by refusal score, and averages what is kept (METHOD steps 2 to 4).
/// Returns the activations and how many prompts a partial file had already.
///
/// # Errors
/// If a run fails, or if the filter leaves too few prompts of a class.
pub fn collect(
    engine: &Engine<'_>,
    inputs: &Inputs<'_>,
    observer: &dyn Observer,
) -> Result<(Activations, usize), Error> {
    let Inputs { chat, prompts, .. } = *inputs;
    let suffix = chat.post_instruction_suffix()?;
    let (n_pos, n_layers, d_model) = (suffix.len(), engine.model.lm.n_layers(), engine.model.lm.d_model());
    let probes: Vec<(usize, ResidPoint)> = (0..n_layers).map(|l| (l, ResidPoint::Pre)).collect();
    let mut session = engine.session(Request { probes, last_positions: n_pos, logits: 1, ..Request::default() })?;
    // what was run for the choice of tokens needs no second run, as far as it can be held
    let mut early = HashMap::new();
    let most = EARLY_BUDGET / (size_of::<f32>() * (n_pos * n_layers * d_model + session.width())).max(1);
    let (refusal_tokens, chosen) = match inputs.refusal_tokens {
        RefusalTokens::Given(ids) => (ids.clone(), TokenChoice::Given),
        RefusalTokens::Automatic => {
            let found = choose_with(engine, &mut session, (chat, prompts), observer, |class, at, found| {
                if early.len() < most {
                    early.insert((class, at), found);
                }
            });
            (found?, TokenChoice::Automatic)
        }
    };
    let fingerprint = format!("{} {refusal_tokens:?} {suffix:?} {:?}", prompts.fingerprint(), chat.system());
    let mut state = Activations {
        means: PerClass::from_fn(|_| ActivationMeans::new(n_pos, n_layers, d_model)),
        info: Info {
            model_sha256: inputs.model_sha256.into(),
            fingerprint,
            refusal_tokens,
            refusal_tokens_chosen: chosen,
            suffix,
            scores: PerClass::from_fn(|class| vec![None; prompts.get(class, Split::Train).len()]),
            prompts: prompts.clone(),
            system: chat.system().map(str::to_string),
        },
    };
    if let Some(partial) = inputs.partial.filter(|p| p.is_file())
        && let Ok(found) = Activations::load(partial)
        && found.info.fingerprint == state.info.fingerprint
        && found.info.model_sha256 == state.info.model_sha256
    {
        state = found;
    }
    let resumed = state.info.scores.iter().flat_map(|(_, scores)| scores).filter(|s| s.is_some()).count();
    let mut encoded = Vec::new();
    let mut places = Vec::new();
    let mut known = Vec::new();
    for class in PromptClass::ALL {
        for (at, tokens) in encode(chat, prompts.get(class, Split::Train))?.into_iter().enumerate() {
            if state.info.scores.get(class)[at].is_some() {
                continue;
            }
            match early.remove(&(class, at)) {
                Some(found) => known.push(((class, at), found)),
                None => {
                    encoded.push(tokens);
                    places.push((class, at));
                }
            }
        }
    }
    drop(early);
    if resumed > 0 {
        observer.note(&format!("continuing: {resumed} prompts were collected before"));
    }
    let rows: Vec<Row<'_>> = encoded.iter().map(|t| Row { tokens: t, direction: 0 }).collect();
    observer.start(&Stage::CollectActivations, rows.len() as u64);
    let mut saved = Instant::now();
    let mut take = |(class, at): (PromptClass, usize), found: RowResult| {
        let score = refusal_score(&softmax(&found.logits), &state.info.refusal_tokens);
        state.info.scores.get_mut(class)[at] = Some(score);
        if state.info.keeps(class, score) {
            state.means.get_mut(class).add(&found.probes);
        }
        if let Some(partial) = inputs.partial
            && saved.elapsed() > Duration::from_secs(20)
        {
            state.save(partial)?;
            saved = Instant::now();
        }
        Ok(())
    };
    let result = known.into_iter().try_for_each(|(place, found)| take(place, found)).and_then(|()| {
        engine.visit(&mut session, &rows, &[], |found| {
            observer.advance(1);
            take(places[found.row], found)
        })
    });
    observer.finish();
    if let Err(error) = result {
        if let Some(partial) = inputs.partial {
            state.save(partial)?;
        }
        return Err(error);
    }
    check_kept(&state)?;
    Ok((state, resumed))
}

impl Info {
    /// Whether the filter keeps a prompt with such a refusal score. Without refusal tokens there is none, and every prompt
    /// is kept.
    pub fn keeps(&self, class: PromptClass, score: f64) -> bool {
        self.refusal_tokens.is_empty() || is_kept(class, score)
    }
}

/// METHOD step 3: refused prompts are kept of the harmful and pseudo-harmful, answered ones of the harmless.
fn is_kept(class: PromptClass, score: f64) -> bool {
    match class {
        PromptClass::Harmful | PromptClass::PseudoHarmful => score > 0.0,
        PromptClass::Harmless => score < 0.0,
    }
}

fn check_kept(state: &Activations) -> Result<(), Error> {
    for (class, means) in state.means.iter() {
        if means.count() < MIN_KEPT {
            let total = state.info.prompts.get(class, Split::Train).len();
            let (did, hint) = match class {
                PromptClass::Harmless => {
                    ("answers", "the refusal tokens also open answers: give better ones with `--refusal-tokens`")
                }
                PromptClass::PseudoHarmful => (
                    "refuses",
                    "if the model does not over-refuse, there is nothing to calibrate; else give other pseudo-harmful prompts, \
                     or the first words of its refusals with `--refusal-tokens \"I,As\"`",
                ),
                PromptClass::Harmful => (
                    "refuses",
                    "give the first words of the model's refusals with `--refusal-tokens \"I,As\"`, or other harmful prompts",
                ),
            };
            return Err(Error::failed_with(
                format!(
                    "too few {class} prompts after the filter: the model {did} {} of {total} by the refusal score, at least \
                     {MIN_KEPT} are needed",
                    means.count()
                ),
                hint,
            ));
        }
    }
    Ok(())
}

/// Tokens with what they decode to.
pub fn labelled(ids: &[u32], chat: &Chat) -> Vec<RefusalToken> {
    ids.iter().map(|&id| RefusalToken { id, text: chat.token_label(id) }).collect()
}

/// The automatic choice of refusal tokens, from the first train prompts of each class.
///
/// # Errors
/// If a run fails, or if no token tells refusals from answers.
pub fn choose_tokens(
    engine: &Engine<'_>,
    chat: &Chat,
    prompts: &Prompts,
    observer: &dyn Observer,
) -> Result<Vec<u32>, Error> {
    let mut session = engine.session(Request { logits: 1, last_positions: 1, ..Request::default() })?;
    choose_with(engine, &mut session, (chat, prompts), observer, |_, _, _| ())
}

/// The same with a session that is there; `found` is told the class, the index in it and the result of each prompt that
/// is run.
fn choose_with(
    engine: &Engine<'_>,
    session: &mut Session,
    (chat, prompts): (&Chat, &Prompts),
    observer: &dyn Observer,
    mut found: impl FnMut(PromptClass, usize, RowResult),
) -> Result<Vec<u32>, Error> {
    let mut encoded = Vec::new();
    let mut places = Vec::new();
    for class in PromptClass::ALL {
        for (at, tokens) in
            encode(chat, prompts.get(class, Split::Train))?.into_iter().take(AUTOMATIC_SAMPLE).enumerate()
        {
            encoded.push(tokens);
            places.push((class, at));
        }
    }
    let rows: Vec<Row<'_>> = encoded.iter().map(|t| Row { tokens: t, direction: 0 }).collect();
    let mut first: PerClass<FirstTokens> = PerClass::default();
    observer.start(&Stage::ChooseRefusalTokens, rows.len() as u64);
    engine.visit(session, &rows, &[], |result| {
        let (class, at) = places[result.row];
        first.get_mut(class).add(&softmax(&result.logits));
        found(class, at, result);
        observer.advance(1);
        Ok(())
    })?;
    observer.finish();
    let opens = |token: u32| {
        let text = chat.decode(&[token], true).unwrap_or_default().replace('\u{2019}', "'").trim().to_lowercase();
        !text.is_empty() && REFUSAL_SUBSTRINGS.iter().any(|s| s.to_lowercase().starts_with(&text))
    };
    let chosen =
        automatic_refusal_tokens(&first.harmful, &first.pseudo_harmful, &first.harmless, opens, AUTOMATIC_LIMIT);
    if chosen.is_empty() {
        return Err(Error::failed_with(
            "no first token tells refusals from answers: the model answers harmful and harmless prompts alike",
            "is this a safety-tuned chat model? If so, name the first words of its refusals: `--refusal-tokens \"I,As\"`; or, \
             where refusals begin like answers, pass `--refusal-tokens none --method wang --score cosmic`",
        ));
    }
    Ok(chosen)
}
