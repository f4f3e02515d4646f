//! The guard sets, put to a model: which of their prompts it can be asked, and what its answers come to.

use super::{JudgedAnswer, Settings, judged};
use crate::chat::{Chat, ChatError, Message};
use crate::error::Error;
use crate::eval::answers::ClassResult;
use crate::eval::policy::Evidence;
use crate::eval::statistics::Paired;
use crate::method::prompts::{Conversation, GuardPrompts, GuardSet, PromptClass, Turn};
use crate::pipeline::engine::{Generation, Generator, Observer};
use crate::pipeline::stage::{Answers, Stage};
use crate::report::{Answer, AnswerPair, BeforeAfter, Condition, GuardSetRow};
use crate::runtime::Decoding;

/// New tokens of an answer to a prompt of a guard set at most: enough to tell a refusal in any language of the sets, as some
/// tokenizers take several tokens a character.
pub const GUARD_SET_TOKENS: usize = 64;

/// A guard set, as a model answers it.
pub struct AskedSet {
    /// Which set.
    pub set: GuardSet,
    /// Answers to what must be refused.
    pub to_refuse: Vec<JudgedAnswer>,
    /// Answers to what only looks like it.
    pub safe: Vec<JudgedAnswer>,
    /// Prompts that the model could not be asked.
    pub left_out: usize,
}

impl AskedSet {
    /// What the answers to what must be refused come to, and those to the safe prompts, where there are any.
    fn results(&self, seed: u64) -> (ClassResult, Option<ClassResult>) {
        let of = |answers: &[JudgedAnswer], class| ClassResult::of(answers, class, &[], seed);
        let safe = (!self.safe.is_empty()).then(|| of(&self.safe, PromptClass::PseudoHarmful));
        (of(&self.to_refuse, self.set.class()), safe)
    }

    /// Its answers, each with the class that its prompt is of.
    fn classed(&self) -> impl Iterator<Item = (PromptClass, &JudgedAnswer)> {
        let to_refuse = self.to_refuse.iter().map(|answer| (self.set.class(), answer));
        to_refuse.chain(self.safe.iter().map(|answer| (PromptClass::PseudoHarmful, answer)))
    }
}

/// The prompts of a set that the model can be asked.
struct Askable<'s> {
    set: GuardSet,
    to_refuse: Vec<Asked<'s>>,
    safe: Vec<Asked<'s>>,
    left_out: usize,
}

/// A conversation and its tokens in the chat format.
type Asked<'s> = (&'s Conversation, Vec<u32>);

/// New tokens of an answer at most.
fn max_new_tokens(settings: &Settings) -> usize {
    settings.max_new_tokens.min(GUARD_SET_TOKENS)
}

/// The prompts of a set whose turns the chat template takes, and which leave room for an answer of full length in so many
/// positions.
fn askable<'s>(
    prompts: &'s GuardPrompts,
    chat: &Chat,
    settings: &Settings,
    positions: Option<usize>,
) -> Result<Askable<'s>, Error> {
    let fits = |tokens: &Vec<u32>| positions.is_none_or(|limit| tokens.len() + max_new_tokens(settings) <= limit + 1);
    let encode = |conversations: &'s [Conversation]| -> Result<Vec<Asked<'s>>, Error> {
        let each = conversations.iter().map(|conversation| Ok((conversation, encoded(chat, conversation)?)));
        let all = each.collect::<Result<Vec<_>, Error>>()?;
        Ok(all.into_iter().filter_map(|(of, tokens)| Some((of, tokens.filter(fits)?))).collect())
    };
    let (to_refuse, safe) = (encode(&prompts.to_refuse)?, encode(&prompts.safe)?);
    let left_out = prompts.to_refuse.len() + prompts.safe.len() - to_refuse.len() - safe.len();
    Ok(Askable { set: prompts.set, to_refuse, safe, left_out })
}

/// A conversation as tokens; none where the chat template refuses its turns.
fn encoded(chat: &Chat, conversation: &Conversation) -> Result<Option<Vec<u32>>, Error> {
    let message = |turn: &Turn| Message::new(turn.role.as_str(), &turn.text);
    let turns: Vec<Message> = conversation.turns().iter().map(message).collect();
    match chat.encode_conversation(&turns) {
        Ok(tokens) => Ok(Some(tokens)),
        Err(ChatError::TemplateRaised { .. } | ChatError::TemplateFailed { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// Puts the guard sets to a model, all in one go, so that few answers are made alone at its end.
pub(super) fn ask(
    generator: &mut Generator<'_>,
    chat: &Chat,
    settings: &Settings,
    whose: &Answers,
    observer: &dyn Observer,
) -> Result<Vec<AskedSet>, Error> {
    let positions = generator.positions().into_iter().chain(settings.max_positions).min();
    let sets = settings.guard_sets.iter().map(|prompts| askable(prompts, chat, settings, positions));
    let sets = sets.collect::<Result<Vec<_>, _>>()?;
    let all = || sets.iter().flat_map(|set| set.to_refuse.iter().chain(&set.safe));
    let encoded: Vec<Vec<u32>> = all().map(|(_, tokens)| tokens.clone()).collect();
    let mut told = Vec::with_capacity(encoded.len());
    if !encoded.is_empty() {
        let generation = Generation {
            max_new_tokens: max_new_tokens(settings),
            stop: settings.stop.clone(),
            decoding: Decoding::Greedy,
            samples: 1,
        };
        observer.start(&Stage::GuardSets { whose: whose.clone() }, encoded.len() as u64);
        let answers = generator.answers(&encoded, &generation, |done| {
            observer.advance(done.answers);
            observer.tokens(done.tokens);
        })?;
        observer.finish();
        for ((conversation, _), answer) in all().zip(answers.iter().flatten()) {
            let text = conversation.to_string();
            told.push(judged(&text, &text, answer, chat, settings)?);
        }
    }
    let mut told = told.into_iter();
    let asked = |of: Askable<'_>| AskedSet {
        set: of.set,
        to_refuse: told.by_ref().take(of.to_refuse.len()).collect(),
        safe: told.by_ref().take(of.safe.len()).collect(),
        left_out: of.left_out,
    };
    Ok(sets.into_iter().map(asked).collect())
}

/// The guard sets of one model alone: a row each, and every answer.
pub(super) fn alone(sets: &[AskedSet], settings: &Settings) -> (Vec<GuardSetRow<ClassResult>>, Vec<Answer>) {
    let row = |of: &AskedSet| {
        let (to_refuse, safe) = of.results(settings.seed);
        let max_new_tokens = max_new_tokens(settings);
        GuardSetRow { set: of.set, to_refuse, safe, left_out: of.left_out, max_new_tokens }
    };
    let answer = |set: GuardSet, (class, told): (PromptClass, &JudgedAnswer)| Answer {
        class,
        condition: Condition::GuardSet { set },
        prompt: told.asked.clone(),
        answer: told.answer.clone(),
        refused: told.refused(class),
        outcome: told.outcome,
    };
    let answers = sets.iter().flat_map(|of| of.classed().map(|told| answer(of.set, told))).collect();
    (sets.iter().map(row).collect(), answers)
}

/// The guard sets of a model before and after: a row each, every answer, and what the guard is shown.
pub(super) fn both(
    before: &[AskedSet],
    after: &[AskedSet],
    settings: &Settings,
    evidence: &mut Evidence,
) -> (Vec<GuardSetRow<BeforeAfter<ClassResult>>>, Vec<AnswerPair>) {
    let (mut rows, mut answers) = (Vec::new(), Vec::new());
    for (a, b) in before.iter().zip(after) {
        let ((refuse_before, safe_before), (refuse_after, safe_after)) =
            (a.results(settings.seed), b.results(settings.seed));
        rows.push(GuardSetRow {
            set: a.set,
            to_refuse: BeforeAfter { before: refuse_before, after: refuse_after },
            safe: safe_before.zip(safe_after).map(|(before, after)| BeforeAfter { before, after }),
            left_out: a.left_out,
            max_new_tokens: max_new_tokens(settings),
        });
        let class = a.set.class();
        let verdicts = a.to_refuse.iter().zip(&b.to_refuse).map(|(x, y)| (x.refused(class), y.refused(class)));
        evidence.guard_sets.push((a.set, Paired::count(verdicts)));
        answers.extend(a.classed().zip(b.classed()).map(|((class, x), (_, y))| AnswerPair {
            class,
            condition: Condition::GuardSet { set: a.set },
            prompt: x.asked.clone(),
            before: x.answer.clone(),
            after: y.answer.clone(),
            refused_before: x.refused(class),
            refused_after: y.refused(class),
            outcome_before: x.outcome,
            outcome_after: y.outcome,
        }));
    }
    (rows, answers)
}
