//! Prompts that are asked under one edit after another, with the steering at run time.

use super::collect::encode;
use super::engine::{Engine, Observer, Steering};
use super::evaluate::{self, Measured};
use super::journal::Journal;
use super::stage::{Answers, Stage};
use crate::chat::Chat;
use crate::edit::Edit;
use crate::error::Error;
use crate::eval::outcome::Outcome;
use crate::method::prompts::Prompts;
use crate::report::ClassResult;

/// Prompts, ready to be asked under one edit after another.
pub(super) struct Bench<'a> {
    pub engine: Engine<'a>,
    pub chat: &'a Chat,
    pub prompts: &'a Prompts,
    pub settings: &'a evaluate::Settings,
    pub observer: &'a dyn Observer,
    /// Where results are kept, if anywhere.
    pub journal: Option<&'a Journal>,
}

impl Bench<'_> {
    /// Everything that the settings ask for, on the model with an edit or as it is.
    pub(super) fn measure(&self, edit: Option<&Edit>, whose: &Answers) -> Result<Measured, Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let Self { chat, prompts, settings, observer, .. } = *self;
        let mut measured = evaluate::measure(&engine, chat, prompts, settings, whose, observer)?;
        evaluate::judge_answers(&mut [&mut measured], settings, engine.cancelled, observer)?;
        Ok(measured)
    }

    /// How many of some prompts are refused under an edit; no scores.
    pub(super) fn refusals(&self, edit: Option<&Edit>, texts: &[String], stage: &Stage) -> Result<ClassResult, Error> {
        let steering = edit.map(Steering::of);
        let engine = Engine { steered: steering.as_ref(), ..self.engine };
        let Self { chat, settings, observer, .. } = *self;
        observer.start(stage, texts.len() as u64);
        let rows = encode(chat, texts)?;
        let answers = engine.answers(&rows, settings.max_new_tokens, &settings.stop, |n| observer.advance(n))?;
        observer.finish();
        let mut refused = 0;
        for ids in answers {
            refused += usize::from(settings.patterns.outcome(&chat.decode(&ids, true)?) == Outcome::Refused);
        }
        Ok(ClassResult::new(refused, texts.len(), &[]))
    }
}

/// What the wrapped prompts came to, taken together; `None` where there were none.
pub(super) fn wrapped(measured: &Measured, settings: &evaluate::Settings) -> Option<ClassResult> {
    let wrapped = measured.sets.iter().filter(|set| settings.asks[set.ask].wrapper.is_some());
    let results: Vec<ClassResult> = wrapped.map(|set| set.result(settings.seed)).collect();
    let sum = |get: fn(&ClassResult) -> usize| results.iter().map(get).sum();
    (!results.is_empty()).then(|| ClassResult::new(sum(|r| r.refused), sum(|r| r.total), &[]))
}
