//! Answers put to an external judge.

use std::sync::Mutex;
use std::sync::atomic::AtomicBool;

use super::{Measured, Settings};
use crate::error::Error;
use crate::judge::Exchange;
use crate::pipeline::engine::Observer;
use crate::pipeline::stage::Stage;

/// Asks the judge about every answer, each different one once.
///
/// # Errors
/// If the judge cannot be reached, or on cancellation. A verdict that cannot be read is counted, and no error.
pub fn judge_answers(
    measured: &mut [&mut Measured],
    settings: &Settings,
    cancelled: &AtomicBool,
    observer: &dyn Observer,
) -> Result<(), Error> {
    let Some((judge, _)) = settings.judge.as_deref() else { return Ok(()) };
    let all = || measured.iter().flat_map(|m| m.answers());
    let visible: Vec<String> = all().map(|told| settings.patterns.visible(&told.answer)).collect();
    let pairs: Vec<Exchange<'_>> =
        all().zip(&visible).map(|(told, answer)| Exchange { prompt: &told.prompt, answer }).collect();
    observer.start(&Stage::AskJudge, pairs.len() as u64);
    let seen = Mutex::new(0);
    let judged = judge.judge_all(
        &pairs,
        &|progress| {
            let mut seen = seen.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
            observer.advance((progress.done as u64).saturating_sub(*seen));
            *seen = (*seen).max(progress.done as u64);
        },
        cancelled,
    )?;
    observer.finish();
    if let Some(bad) = judged.verdicts.iter().find_map(|v| v.as_ref().err()) {
        let all = judged.verdicts.len();
        observer.note(&format!(
            "note: {} of {all} answers have no verdict of the judge ({bad}); the rules judge them",
            judged.progress.bad
        ));
    }
    let told = measured.iter_mut().flat_map(|m| m.answers_mut());
    for (told, verdict) in told.zip(judged.verdicts) {
        told.judged = Some(verdict.ok());
    }
    Ok(())
}
