//! Finding the setting of a run: settings of every method answer validation prompts at run time, under the policy of the
//! guard, and the best that holds is baked. Test prompts have no part in it.

use super::bench::Bench;
use super::collect::Activations;
use super::guard::Guard;
use super::ranking::{closest, nothing_holds, ranked};
use super::settings::SearchRules;
use super::trial::{Trial, Tried};
use crate::edit::Edit;
use crate::error::Error;
use crate::report::{Found, SearchResult};

/// What a search found.
pub(super) struct Searched {
    /// The edit, and how it was found within its method; `None` where nothing holds.
    pub(super) chosen: Option<(Edit, Option<Found>)>,
    /// What it was chosen among.
    pub(super) result: SearchResult,
}

/// Tries the settings and chooses the one that refuses the fewest pseudo-harmful validation prompts of those that keep to
/// the policy; ties go to the smaller harmless KL, then to the earlier setting. Where nothing holds, nothing is chosen, and
/// the result says what came closest; with [`Guard::force`] that is chosen.
///
/// # Errors
/// If a run fails, and if the model refuses no pseudo-harmful validation prompt.
pub(super) fn search(
    bench: &Bench<'_>,
    activations: &Activations,
    rules: &SearchRules,
    guard: &Guard,
) -> Result<Searched, Error> {
    let guard = Guard { policy: guard.policy.for_search(), ..guard.clone() };
    let mut trial = Trial::new(bench, &guard)?;
    let unchanged = &trial.rows[0].classes.pseudo_harmful;
    if unchanged.refused == 0 {
        return Err(Error::failed_with(
            format!(
                "the model refuses none of {} pseudo-harmful validation prompts: there is no false refusal to mend",
                unchanged.total
            ),
            "give prompts that it refuses and should not, or choose a `--method` to bake all the same",
        ));
    }
    trial.run(activations, rules, None)?;
    let Trial { rows, tried, .. } = trial;
    let best = ranked(&rows).first().copied();
    let refusal = best.is_none().then(|| nothing_holds(&rows));
    let chosen = best.or_else(|| closest(&rows).filter(|_| guard.force));
    let edit = tried.into_iter().find(|tried| Some(tried.row) == chosen);
    let result = SearchResult { chosen, refusal, rows };
    Ok(Searched { chosen: edit.map(|Tried { edit, found, .. }| (edit, found)), result })
}
