//! Measuring a model: answers and their outcomes, refusal scores, perplexity, multiple choice.

mod compare;
mod guard_sets;
mod judging;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use compare::{Compared, alone, class_table, compare};
pub use guard_sets::{AskedSet, GUARD_SET_TOKENS};
pub use judging::judge_answers;

use super::collect::encode;
use super::engine::{Engine, Generation, Observer, cost};
use super::running::Running;
use super::stage::{Answers, Stage};
use super::understood::UnderstoodVariant;
use super::{divergence, multiple_choice, perplexity};
use crate::chat::Chat;
use crate::error::Error;
use crate::eval::answers::{ClassResult, JudgedAnswer};
use crate::eval::patterns::RefusalPatterns;
use crate::eval::refusal::is_refusal;
use crate::eval::wrappers::Wrapper;
use crate::judge::Judge;
use crate::method::prompts::{GuardPrompts, PromptClass, Prompts, Split};
use crate::method::score::{refusal_score, softmax};
use crate::multiple_choice::Items;
use crate::report::{self, Condition, Setup, VariantEval, scores};
use crate::runtime::generate::Generated;
use crate::runtime::{Decoding, Sampling};

/// Tokens of an answer that tell whether it refuses.
const TELLING_TOKENS: usize = 32;

/// Pairs of timed runs.
pub(super) const COST_PAIRS: usize = 6;

/// One way of putting prompts to a model. The first one of [`Settings`] is the plain one.
#[derive(Clone)]
pub struct Ask {
    /// Which condition it is.
    pub condition: Condition,
    /// Classes that are asked.
    pub classes: Vec<PromptClass>,
    /// Prompts a class at most.
    pub limit: usize,
    /// What is wrapped around every prompt.
    pub wrapper: Option<Wrapper>,
    /// The chat format with another system prompt.
    pub chat: Option<Arc<Chat>>,
    /// Random answers instead of the greedy one: how they are drawn, and how many a prompt.
    pub sampled: Option<(Sampling, usize)>,
}

impl Ask {
    /// All test prompts as they are.
    #[must_use]
    pub fn plain() -> Self {
        Self {
            condition: Condition::Plain,
            classes: PromptClass::ALL.to_vec(),
            limit: usize::MAX,
            wrapper: None,
            chat: None,
            sampled: None,
        }
    }

    fn generation(&self, settings: &Settings) -> Generation {
        let (decoding, samples) = match self.sampled {
            Some((sampling, samples)) => (Decoding::Sampled(sampling), samples),
            None => (Decoding::Greedy, 1),
        };
        Generation { max_new_tokens: settings.max_new_tokens, stop: settings.stop.clone(), decoding, samples }
    }

    fn fingerprint(&self) -> String {
        let Self { condition, classes, limit, wrapper, chat, sampled } = self;
        let system = chat.as_ref().map(|chat| chat.system());
        format!("{condition:?} {classes:?} {limit} {wrapper:?} {system:?} {sampled:?}")
    }

    /// The condition in words.
    fn setup(&self, chat: &Chat, settings: &Settings) -> Setup {
        Setup {
            max_new_tokens: settings.max_new_tokens,
            system_prompt: self.chat.as_deref().unwrap_or(chat).system().map(str::to_string),
            decoding: match self.sampled {
                None => report::Decoding::Greedy,
                Some((sampling, samples)) => report::Decoding::Sampled { sampling, samples },
            },
            wrapper: self.wrapper.as_ref().map(|w| w.name.clone()),
        }
    }
}

/// How to measure.
#[derive(Clone)]
pub struct Settings {
    /// Which prompts are asked: those of the test split, but where a setting is searched for.
    pub split: Split,
    /// New tokens at most, an answer.
    pub max_new_tokens: usize,
    /// Tokens that end an answer.
    pub stop: Vec<u32>,
    /// Tokens that the model's config has positions for.
    pub max_positions: Option<usize>,
    /// Refusal tokens of the score.
    pub refusal_tokens: Vec<u32>,
    /// How prompts are put; the first is [`Ask::plain`].
    pub asks: Vec<Ask>,
    /// The guard sets that are asked besides, as they are and answered greedily.
    pub guard_sets: Vec<GuardPrompts>,
    /// What a refusal looks like.
    pub patterns: RefusalPatterns,
    /// An external judge of the answers, and what the report calls it.
    pub judge: Option<Arc<(Judge, String)>>,
    /// Response positions at which the harmless KL is taken; 0 and 1 take the first only.
    pub kl_positions: usize,
    /// A text to take the perplexity of.
    pub perplexity: Option<(String, perplexity::Options)>,
    /// Questions to take the accuracy on.
    pub multiple_choice: Option<(Items, multiple_choice::Options)>,
    /// Whether file size, memory and latency are compared.
    pub cost: bool,
    /// Seed of the bootstrap.
    pub seed: u64,
}

impl Settings {
    /// Everything that is measured and how, in words that differ where anything in it differs.
    pub(super) fn fingerprint(&self) -> String {
        let Self { split, max_new_tokens, stop, max_positions, refusal_tokens, patterns, kl_positions, seed, .. } =
            self;
        let asks: Vec<String> = self.asks.iter().map(Ask::fingerprint).collect();
        let judge = self.judge.as_ref().map(|judge| &judge.1);
        format!(
            "{:?} {:?} {:?} {:?} {:?}",
            (split, max_new_tokens, stop, max_positions, refusal_tokens),
            (asks, &self.guard_sets, patterns),
            (judge, kl_positions, seed),
            &self.perplexity,
            &self.multiple_choice,
        )
    }

    /// Every class of every condition, as the model is asked.
    fn questions<'p>(&self, chat: &Chat, prompts: &'p Prompts) -> Result<Vec<Question<'p>>, Error> {
        let mut all = Vec::new();
        for (at, ask) in self.asks.iter().enumerate() {
            for &class in &ask.classes {
                let texts = prompts.get(class, self.split);
                let texts = &texts[..texts.len().min(ask.limit)];
                let asked: Vec<String> = match &ask.wrapper {
                    Some(wrapper) => texts.iter().map(|text| wrapper.wrap(text)).collect(),
                    None => texts.to_vec(),
                };
                let encoded = encode(ask.chat.as_deref().unwrap_or(chat), &asked)?;
                all.push(Question { ask: at, class, texts, asked, encoded });
            }
        }
        Ok(all)
    }

    /// Which of the questions are asked in one go, so that few answers are made alone at its end: greedy ones with the same
    /// beginning. What is sampled depends on a prompt's place, so those are asked class by class.
    fn together(&self, questions: &[Question<'_>]) -> Vec<Vec<usize>> {
        let mut groups: Vec<(Option<usize>, Vec<usize>)> = Vec::new();
        for (at, question) in questions.iter().enumerate() {
            let ask = &self.asks[question.ask];
            let key = match (&ask.sampled, &ask.chat) {
                (None, None) => Some(0),
                (None, Some(_)) => Some(question.ask),
                (Some(_), _) => None,
            };
            match groups.iter_mut().find(|(of, _)| key.is_some() && *of == key) {
                Some((_, group)) => group.push(at),
                None => groups.push((key, vec![at])),
            }
        }
        groups.into_iter().map(|(_, group)| group).filter(|group| !group.is_empty()).collect()
    }

    /// What is measured of the further settings of a run: the prompts as they are and inside wrappers, and the guard sets.
    #[must_use]
    pub fn for_sweep(&self) -> Self {
        let plain = |ask: &&Ask| ask.chat.is_none() && ask.sampled.is_none();
        Self {
            asks: self.asks.iter().filter(plain).cloned().collect(),
            perplexity: None,
            multiple_choice: None,
            cost: false,
            ..self.clone()
        }
    }

    /// What is measured of every setting of a search: the same, on validation prompts, in answers that are long enough to
    /// tell a refusal, without the guard sets.
    #[must_use]
    pub fn for_search(&self) -> Self {
        let max_new_tokens = self.max_new_tokens.min(TELLING_TOKENS);
        Self { split: Split::Val, max_new_tokens, guard_sets: Vec::new(), ..self.for_sweep() }
    }

    /// What is measured of every setting of a comparison: as of a search, with perplexity, multiple choice and cost where
    /// they are asked for.
    #[must_use]
    pub fn for_compare(&self) -> Self {
        let Self { perplexity, multiple_choice, cost, .. } = self.clone();
        Self { perplexity, multiple_choice, cost, ..self.for_search() }
    }
}

/// The prompts of one class under one condition.
struct Question<'p> {
    /// Index of the [`Ask`].
    ask: usize,
    class: PromptClass,
    /// As they are in the set.
    texts: &'p [String],
    /// As they are asked.
    asked: Vec<String>,
    /// As tokens, in the chat format.
    encoded: Vec<Vec<u32>>,
}

impl Question<'_> {
    /// Whether its logits and answers are those that the harmless KL is taken on.
    fn is_plain_harmless(&self) -> bool {
        self.ask == 0 && self.class == PromptClass::Harmless
    }

    /// What the rules say of its answers, a prompt's samples one after another.
    fn told(&self, found: &[Vec<Generated>], chat: &Chat, settings: &Settings) -> Result<Vec<JudgedAnswer>, Error> {
        let each = self.texts.iter().zip(&self.asked).zip(found);
        let each = each.flat_map(|(of, samples)| samples.iter().map(move |sample| (of, sample)));
        each.map(|((prompt, asked), sample)| judged(prompt, asked, sample, chat, settings)).collect()
    }
}

/// What the rules say of one answer.
fn judged(
    prompt: &str,
    asked: &str,
    answer: &Generated,
    chat: &Chat,
    settings: &Settings,
) -> Result<JudgedAnswer, Error> {
    let answer = chat.decode(&answer.ids, true)?;
    Ok(JudgedAnswer {
        prompt: prompt.to_owned(),
        asked: asked.to_owned(),
        outcome: settings.patterns.outcome(&answer),
        substring: is_refusal(&answer),
        judged: None,
        answer,
    })
}

/// One class under one condition.
pub struct Set {
    /// Index of the [`Ask`].
    pub ask: usize,
    /// The class.
    pub class: PromptClass,
    /// Every answer: a prompt's samples one after another.
    pub told: Vec<JudgedAnswer>,
    /// Refusal score of every prompt at the first response position, in nats; empty for sampled answers, whose
    /// scores are the greedy ones.
    pub scores: Vec<f64>,
}

impl Set {
    /// What its answers come to.
    pub fn result(&self, seed: u64) -> ClassResult {
        ClassResult::of(&self.told, self.class, &self.scores, seed)
    }
}

/// What a model does on the test prompts.
pub struct Measured {
    /// Every class of every condition.
    pub sets: Vec<Set>,
    /// Every guard set that was asked.
    pub guard_sets: Vec<AskedSet>,
    /// First-response logits of the harmless prompts, `[d_vocab]` each.
    pub harmless_logits: Vec<Vec<f32>>,
    /// Answers to the harmless prompts as tokens, for the KL at later positions.
    pub harmless_answers: Vec<Vec<u32>>,
    /// Perplexity, where a text was given.
    pub perplexity: Option<scores::Perplexity>,
    /// Accuracy, where questions were given.
    pub multiple_choice: Option<scores::MultipleChoice>,
}

impl Measured {
    /// Every answer, in an order that depends on the settings alone.
    fn answers(&self) -> impl Iterator<Item = &JudgedAnswer> {
        let of_sets = self.guard_sets.iter().flat_map(|set| set.to_refuse.iter().chain(&set.safe));
        self.sets.iter().flat_map(|set| &set.told).chain(of_sets)
    }

    /// The same answers, to be judged.
    fn answers_mut(&mut self) -> impl Iterator<Item = &mut JudgedAnswer> {
        let of_sets = self.guard_sets.iter_mut().flat_map(|set| set.to_refuse.iter_mut().chain(&mut set.safe));
        self.sets.iter_mut().flat_map(|set| &mut set.told).chain(of_sets)
    }
}

/// Puts every test prompt and every guard set to a model in every way that the settings tell.
///
/// # Errors
/// If a run fails.
pub fn measure(
    engine: &Engine<'_>,
    chat: &Chat,
    prompts: &Prompts,
    settings: &Settings,
    whose: &Answers,
    observer: &dyn Observer,
) -> Result<Measured, Error> {
    let questions = settings.questions(chat, prompts)?;
    let mut sets: Vec<Option<Set>> = questions.iter().map(|_| None).collect();
    let (mut harmless_logits, mut harmless_answers) = (Vec::new(), Vec::new());
    let mut generator = engine.generator()?.with_positions(settings.max_positions);
    for together in settings.together(&questions) {
        let ask = &settings.asks[questions[together[0]].ask];
        let generation = ask.generation(settings);
        let encoded: Vec<Vec<u32>> = together.iter().flat_map(|&at| questions[at].encoded.iter().cloned()).collect();
        let stage = Stage::Answers { whose: whose.clone(), condition: ask.condition.clone() };
        observer.start(&stage, (encoded.len() * generation.samples) as u64);
        // where each question's prompts begin
        let begins: Vec<usize> = together
            .iter()
            .scan(0, |end, &at| {
                *end += questions[at].encoded.len();
                Some(*end - questions[at].encoded.len())
            })
            .collect();
        let mut scores = vec![0.0; encoded.len()];
        let mut logits: BTreeMap<usize, Vec<f32>> = BTreeMap::new();
        let mut first = |prompt: usize, found: &[f32]| {
            scores[prompt] = refusal_score(&softmax(found), &settings.refusal_tokens);
            let of = begins.partition_point(|begin| *begin <= prompt) - 1;
            if questions[together[of]].is_plain_harmless() {
                logits.insert(prompt, found.to_vec());
            }
        };
        let mut answers = generator
            .answers_and_first(&encoded, &generation, &mut first, |done| {
                observer.advance(done.answers);
                observer.tokens(done.tokens);
            })?
            .into_iter();
        observer.finish();
        harmless_logits.extend(logits.into_values());
        for (&at, begin) in together.iter().zip(begins) {
            let question = &questions[at];
            let n = question.encoded.len();
            let found: Vec<Vec<Generated>> = answers.by_ref().take(n).collect();
            if question.is_plain_harmless() {
                harmless_answers.extend(found.iter().flatten().map(|answer| answer.ids.clone()));
            }
            // scores are those of the greedy conditions
            let scores = if ask.sampled.is_none() { scores[begin..begin + n].to_vec() } else { Vec::new() };
            sets[at] = Some(Set {
                ask: question.ask,
                class: question.class,
                told: question.told(&found, chat, settings)?,
                scores,
            });
        }
    }
    let sets = sets.into_iter().map(|set| set.expect("every question is in some group")).collect();
    let guard_sets = guard_sets::ask(&mut generator, chat, settings, whose, observer)?;
    drop(generator);
    let perplexity = match &settings.perplexity {
        Some((text, options)) => Some(perplexity::measure(engine, chat, text, options, observer)?),
        None => None,
    };
    let multiple_choice = match &settings.multiple_choice {
        Some((items, options)) => Some(multiple_choice::measure(engine, chat, items, options, observer)?),
        None => None,
    };
    Ok(Measured { sets, guard_sets, harmless_logits, harmless_answers, perplexity, multiple_choice })
}

/// Measures each model as it is.
///
/// # Errors
/// If a run fails.
pub fn each(
    models: &[UnderstoodVariant<'_>],
    running: &Running<'_>,
    settings: &Settings,
    observer: &dyn Observer,
) -> Result<Vec<VariantEval>, Error> {
    let Running { chat, prompts, cancelled, .. } = *running;
    let mut found = Vec::new();
    for UnderstoodVariant { variant, opened, model } in models {
        let Some(model) = model else { continue };
        let whose = Answers::Alone { variant: (models.len() > 1).then(|| variant.name.clone()) };
        let mut measured = measure(&running.engine(model), chat, prompts, settings, &whose, observer)?;
        judge_answers(&mut [&mut measured], settings, cancelled, observer)?;
        let eval = alone(&opened.files.onnx, measured, settings, chat);
        found.push(VariantEval { model: variant.name.clone(), eval });
    }
    Ok(found)
}

/// Measures the model before and after, lets the judge see both, and compares. `variant` is what the progress calls
/// the model, where there are several.
///
/// # Errors
/// If a run fails, or if the judge cannot be reached.
pub fn both(
    engines: (&Engine<'_>, &Engine<'_>),
    chat: &Chat,
    prompts: &Prompts,
    settings: &Settings,
    variant: Option<String>,
    observer: &dyn Observer,
) -> Result<Compared, Error> {
    let (base, edited) = engines;
    let mut before = measure(base, chat, prompts, settings, &Answers::Before { variant: variant.clone() }, observer)?;
    let mut after = measure(edited, chat, prompts, settings, &Answers::After { variant }, observer)?;
    judge_answers(&mut [&mut before, &mut after], settings, base.cancelled, observer)?;
    let mut later = Vec::new();
    if settings.kl_positions > 1 {
        let harmless = encode(chat, prompts.get(PromptClass::Harmless, Split::Test))?;
        let answers = &before.harmless_answers;
        let (texts, room) = ((harmless.as_slice(), answers.as_slice()), divergence::Room::of(base, edited));
        let found = divergence::measure(base, edited, texts, settings.kl_positions, room, observer)?;
        later = found.positions.iter().map(|p| p.mean).collect();
    }
    let mut compared = compare(&before, &after, settings, chat, later);
    if settings.cost {
        let workload = cost::Workload { pairs: COST_PAIRS, ..cost::Workload::default() };
        observer.start(&Stage::Cost, workload.pairs as u64);
        compared.result.cost = Some(cost::measure(base, edited, &workload, |pairs| observer.advance(pairs))?);
        observer.finish();
    }
    Ok(compared)
}
