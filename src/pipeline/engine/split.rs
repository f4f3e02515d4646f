//! Prompts that begin alike, as a chat template makes them: what they have in common is run once for each direction, and
//! what that leaves in the KV cache serves every prompt.

use std::collections::HashMap;

use super::reading::{self, alike};
use super::{Engine, Fed, Row, RowResult, Session, Value};
use crate::error::Error;
use crate::instrument::Cut;
use crate::lm::interface::Past;
use crate::lm::{Interface, Padding};
use crate::runtime::RuntimeError;
use crate::runtime::batch::{self, Batch, Splitting};
use crate::runtime::prefix::{self, Prefix};

/// Bytes of the KV cache of common beginnings that are held at a time, if one does not take more.
const CACHE_BUDGET: usize = 256 << 20;

/// Tokens of the beginning that the check of a split takes.
const TRIED: usize = 4;

/// Indices of the rows in groups whose directions' caches of `prefix` tokens are held at once.
pub(super) fn groups(interface: &Interface, directions: &[usize], prefix: usize) -> Vec<Vec<usize>> {
    if prefix == 0 {
        return vec![(0..directions.len()).collect()];
    }
    let at_once = (CACHE_BUDGET / cache_bytes(interface, prefix).max(1)).max(1);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    let mut places: HashMap<usize, usize> = HashMap::new();
    for (row, direction) in directions.iter().enumerate() {
        let met = places.len();
        let group = *places.entry(*direction).or_insert(met / at_once);
        if group == groups.len() {
            groups.push(Vec::new());
        }
        groups[group].push(row);
    }
    groups
}

/// Bytes of the KV cache of one row of `tokens` tokens.
fn cache_bytes(interface: &Interface, tokens: usize) -> usize {
    let of_slot = |slot: &crate::lm::CacheSlot| {
        let sizes = slot.empty.iter().enumerate();
        let values = sizes.map(|(axis, size)| if slot.sequence_axis == Some(axis) { tokens } else { *size });
        values.product::<usize>() * slot.dtype.size().and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(4)
    };
    interface.cache.iter().map(of_slot).sum()
}

impl Engine<'_> {
    /// Runs `tokens` once for each of the directions of `rows`.
    pub(super) fn prefix(
        &self,
        session: &mut Session,
        tokens: &[u32],
        keys: &[usize],
        directions: &[Vec<f32>],
    ) -> Result<Prefix<Value>, Error> {
        let mut met: Vec<usize> = keys.to_vec();
        met.sort_unstable();
        met.dedup();
        let mut found = Prefix::new(tokens.len());
        for members in batch::plan(&vec![tokens.len(); met.len()], self.batch, &session.interface) {
            self.check_cancelled()?;
            let batch = Batch::new(&vec![tokens; members.len()], self.pad);
            let vectors: Vec<&[f32]> =
                members.iter().map(|&at| directions.get(met[at]).map_or(&[] as &[f32], Vec::as_slice)).collect();
            let (batch, past) = session.run_ahead(self, batch, &vectors, None)?;
            let cache = session.cache(self, &batch, &vectors, past)?;
            found.add(cache, &members.iter().map(|&at| met[at]).collect::<Vec<_>>());
        }
        Ok(found)
    }

    /// How the session can run the end of a row behind a cache of its beginning: found once a model, by a few tokens in
    /// both ways.
    pub(super) fn splitting(&self, session: &mut Session) -> Result<Splitting, Error> {
        if !may_split(session) || self.model.lm.cached.is_some() {
            return Ok(Splitting::Never);
        }
        if let Some(known) = self.model.splitting.get() {
            return Ok(*known);
        }
        let together = (!session.interface.single).then_some((Splitting::Together, 3));
        let mut found = Splitting::Never;
        for (way, rows) in together.into_iter().chain([(Splitting::Alone, 1)]) {
            let works = match self.try_split(session, rows) {
                // some operators take a past for one row only, or none
                Err(Error::Runtime(
                    RuntimeError::Run { .. } | RuntimeError::Input { .. } | RuntimeError::Output { .. },
                )) => false,
                works => works?,
            };
            if works {
                found = way;
                break;
            }
        }
        Ok(*self.model.splitting.get_or_init(|| found))
    }

    /// Compares `count` rows that are split with the same rows whole.
    fn try_split(&self, session: &mut Session, count: usize) -> Result<bool, Error> {
        let short = usize::from(session.interface.padding == Padding::Left);
        let keep = session.last_positions.max(session.logits) + 1;
        let begin = reading::made_up(self, 0, TRIED);
        let rest = |row: usize| reading::made_up(self, row + 1, keep + short - if row == 1 { short } else { 0 });
        let prompts: Vec<Vec<u32>> = (0..count).map(|row| [begin.clone(), rest(row)].concat()).collect();
        let rows: Vec<Row<'_>> = prompts.iter().map(|tokens| Row { tokens, direction: 0 }).collect();
        let prefix = self.prefix(session, &begin, &[0], &[])?;
        let mut found = [const { Vec::new() }; 2];
        for (found, prefix) in found.iter_mut().zip([None, Some(&prefix)]) {
            let fed = Fed { rows: &rows, directions: &[], prefix, keyed: false };
            let each = &mut |result: RowResult| {
                found.extend([result.probes.concat(), result.logits]);
                Ok(())
            };
            self.run_batch(session, &fed, &(0..count).collect::<Vec<_>>(), each)?;
        }
        let [whole, split] = found.map(|all| all.into_iter().filter(|values| !values.is_empty()).collect::<Vec<_>>());
        Ok(alike(&whole, &split, reading::tolerance(self)))
    }

    /// Tokens that all rows begin with and that are run once for each of `directions`; 0 where every row is run whole.
    pub(super) fn common(&self, session: &Session, rows: &[Row<'_>], directions: usize) -> usize {
        if session.splitting == Splitting::Never {
            return 0;
        }
        let tokens: Vec<&[u32]> = rows.iter().map(|row| row.tokens).collect();
        let found = prefix::common(&tokens, directions, session.last_positions.max(session.logits));
        let all: usize = tokens.iter().map(|tokens| tokens.len()).sum();
        // rows that cannot share a run any more must be much shorter for it
        if session.splitting == Splitting::Alone && !session.interface.single && 2 * found * rows.len() < all {
            return 0;
        }
        found
    }
}

/// Whether a session has a cache that can be cut between any two positions.
fn may_split(session: &Session) -> bool {
    let Interface { cache, feeding, padding, .. } = &session.interface;
    let grows = |slot: &crate::lm::CacheSlot| {
        // a state of fixed size is what all tokens of the beginning leave, and cannot be cut
        slot.window.is_none() && (slot.sequence_axis.is_some() || *padding == Padding::EqualLengths)
    };
    session.returns_cache
        && session.cut == Cut::InGraph
        && feeding.past == Past::Empty
        && !feeding.restarts()
        && !cache.is_empty()
        && cache.iter().all(grows)
}

impl Session {
    /// Runs a batch and returns the KV cache, in the order of the interface.
    pub(super) fn cache(
        &mut self,
        engine: &Engine<'_>,
        batch: &Batch,
        directions: &[&[f32]],
        past: Option<Vec<Value>>,
    ) -> Result<Vec<Value>, RuntimeError> {
        let presents: Vec<String> = self.interface.cache.iter().map(|slot| slot.present.clone()).collect();
        self.run(engine, batch, directions, past, &presents)
    }
}
