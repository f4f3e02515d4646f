//! Prompts that begin alike, as a chat template makes them: what they have in common is run once for each direction, and
//! what that leaves in the KV cache serves every prompt.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::PoisonError;

use super::reading::{self, alike};
use super::{Engine, Fed, Row, RowResult, Session, Value};
use crate::error::Error;
use crate::instrument::Cut;
use crate::lm::interface::Past;
use crate::lm::{Interface, Padding};
use crate::runtime::batch::{self, Batch, Splitting};
use crate::runtime::prefix::{self, Prefix};
use crate::runtime::{Backend, RuntimeError};

/// Bytes of the KV cache of common beginnings that are held at a time, if one does not take more.
const CACHE_BUDGET: usize = 256 << 20;

/// Tokens of the beginning that the check of a split takes.
const TRIED: usize = 4;

/// Tokens of the longest row that is run whole to be compared.
const WHOLE: usize = 4096;

/// Caches of a beginning of so many tokens that are held at once.
fn caches_at_once(interface: &Interface, tokens: usize) -> usize {
    (CACHE_BUDGET / batch::cache_bytes(interface, tokens).max(1)).max(1)
}

/// Indices of the rows in groups whose directions' caches of `prefix` tokens are held at once.
pub(super) fn groups(interface: &Interface, directions: &[usize], prefix: usize) -> Vec<Vec<usize>> {
    if prefix == 0 {
        return vec![(0..directions.len()).collect()];
    }
    let at_once = caches_at_once(interface, prefix);
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

/// The common beginning that a session ran last, kept from one visit to the next: candidates are visited in rounds.
#[derive(Default)]
pub struct Begun {
    /// The key of each direction that was met, by its bits.
    keys: HashMap<Vec<u32>, usize>,
    last: Option<Prefix<Value>>,
}

impl Begun {
    /// The key of a direction.
    pub(super) fn key(&mut self, direction: &[f32]) -> usize {
        let next = self.keys.len();
        *self.keys.entry(direction.iter().map(|v| v.to_bits()).collect()).or_insert(next)
    }

    /// Keeps the caches of a beginning for the next visit.
    pub(super) fn keep(&mut self, prefix: Option<Prefix<Value>>) {
        self.last = prefix.or(self.last.take());
    }
}

impl Engine<'_> {
    /// The caches of `tokens` for each of `members`, a key and the index of its direction: those that the session kept,
    /// and the others by a run. [`Begun::keep`] keeps them for the next visit.
    ///
    /// # Errors
    /// If a run fails.
    pub(super) fn begin(
        &self,
        session: &mut Session,
        tokens: &[u32],
        members: impl Iterator<Item = (usize, usize)>,
        directions: &[Vec<f32>],
    ) -> Result<Prefix<Value>, Error> {
        let members: BTreeMap<usize, usize> = members.collect();
        let missing = |prefix: &Prefix<Value>| -> Vec<(usize, usize)> {
            members.iter().map(|(key, direction)| (*key, *direction)).filter(|(key, _)| !prefix.has(*key)).collect()
        };
        let at_once = caches_at_once(&session.interface, tokens.len());
        let fits = |kept: &Prefix<Value>| kept.tokens == tokens && kept.held() + missing(kept).len() <= at_once;
        let mut prefix = session.begun.last.take().filter(fits).unwrap_or_else(|| Prefix::new(tokens));
        let missing = missing(&prefix);
        self.prefix(session, tokens, &missing, directions, &mut prefix)?;
        Ok(prefix)
    }

    /// Runs `tokens` once for each of `members`, a key and the index of its direction, and adds their caches to `found`.
    ///
    /// # Errors
    /// If a run fails.
    pub(super) fn prefix(
        &self,
        session: &mut Session,
        tokens: &[u32],
        met: &[(usize, usize)],
        directions: &[Vec<f32>],
        found: &mut Prefix<Value>,
    ) -> Result<(), Error> {
        let positions = reading::positions(session, tokens.len()).1;
        let planned = batch::plan(&vec![tokens.len(); met.len()], self.batch, &session.interface);
        for members in planned.iter().flat_map(|members| members.chunks(self.rows_at_once(positions))) {
            self.check_cancelled()?;
            let batch = Batch::new(&vec![tokens; members.len()], self.pad);
            let vectors: Vec<&[f32]> =
                members.iter().map(|&at| directions.get(met[at].1).map_or(&[] as &[f32], Vec::as_slice)).collect();
            let (batch, past) = session.run_ahead(self, batch, &vectors, None)?;
            let cache = session.cache(self, &batch, &vectors, past)?;
            found.add(cache, &members.iter().map(|&at| met[at].0).collect::<Vec<_>>());
        }
        Ok(())
    }

    /// How the session can run the end of a row behind a cache of its beginning: found once a model, by a few tokens in
    /// both ways.
    pub(super) fn splitting(&self, session: &mut Session) -> Result<Splitting, Error> {
        if !may_split(session) || self.model.lm.cached.is_some() || reading::couples_rows(self) {
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
                    RuntimeError::Run { .. }
                    | RuntimeError::Input { .. }
                    | RuntimeError::Output { .. }
                    | RuntimeError::NotFinite { .. },
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
        self.both_ways(session, &rows, &begin, &[])
    }

    /// Whether rows that begin with `begin` give the same behind a cache of it as whole.
    fn both_ways(
        &self,
        session: &mut Session,
        rows: &[Row<'_>],
        begin: &[u32],
        directions: &[Vec<f32>],
    ) -> Result<bool, Error> {
        let keys: Vec<usize> = rows.iter().map(|row| row.direction).collect();
        let met: BTreeSet<(usize, usize)> = keys.iter().map(|&key| (key, key)).collect();
        let mut prefix = Prefix::new(begin);
        self.prefix(session, begin, &met.into_iter().collect::<Vec<_>>(), directions, &mut prefix)?;
        let members: Vec<usize> = (0..rows.len()).collect();
        let splitting = session.splitting;
        let mut found = [const { Vec::new() }; 2];
        for (found, prefix) in found.iter_mut().zip([None, Some(&prefix)]) {
            let fed = Fed { rows, directions, prefix, keys: &keys };
            let each = &mut |result: RowResult| {
                found.extend(result.probes);
                found.push(result.logits);
                Ok(())
            };
            // whole is whole, not in pieces
            session.splitting = if prefix.is_some() { splitting } else { Splitting::Never };
            let run = self.run_batch(session, &fed, &members, each);
            session.splitting = splitting;
            run?;
        }
        let [whole, split] = found.map(|all| all.into_iter().filter(|values| !values.is_empty()).collect::<Vec<_>>());
        Ok(alike(&whole, &split, reading::tolerance(self)))
    }

    /// Tokens that all rows begin with and that are run once for each of `keys` ways to run them; 0 where every row is run
    /// whole. `directions` are those of the rows.
    ///
    /// # Errors
    /// If a run fails.
    pub(super) fn common(
        &self,
        session: &mut Session,
        rows: &[Row<'_>],
        keys: usize,
        directions: &[Vec<f32>],
    ) -> Result<usize, Error> {
        if session.splitting == Splitting::Never {
            return Ok(0);
        }
        let tokens: Vec<&[u32]> = rows.iter().map(|row| row.tokens).collect();
        let keep = session.last_positions.max(session.logits);
        let mut found = prefix::common(&tokens, keys, keep);
        let all: usize = tokens.iter().map(|tokens| tokens.len()).sum();
        // rows that cannot share a run any more must be much shorter for it
        if session.splitting == Splitting::Alone && !session.interface.single && 2 * found * rows.len() < all {
            found = 0;
        }
        let longest = rows.iter().max_by_key(|row| row.tokens.len());
        let Some(longest) = longest.filter(|row| found > 0 || batch::pieces(0, row.tokens.len(), keep).len() > 1)
        else {
            return Ok(0);
        };
        let begin = if found > 0 { found } else { longest.tokens.len() / 2 };
        if !self.holds(session, longest, begin, directions)? {
            session.splitting = Splitting::Never;
            return Ok(0);
        }
        Ok(found)
    }

    /// Whether what was found with a few tokens also holds for a row as long as this one, split behind `begin` tokens:
    /// some graphs turn positions by other angles once there are many, or keep the last ones only. Compared anew for a row
    /// or a beginning that is longer than those before; a row of more than [`WHOLE`] tokens is believed.
    fn holds(
        &self,
        session: &mut Session,
        row: &Row<'_>,
        begin: usize,
        directions: &[Vec<f32>],
    ) -> Result<bool, Error> {
        let tokens = row.tokens.len();
        let before = *self.model.compared.lock().unwrap_or_else(PoisonError::into_inner);
        if (tokens <= before.0 && begin <= before.1) || tokens > WHOLE {
            return Ok(true);
        }
        let holds = match self.both_ways(session, &[*row], &row.tokens[..begin], directions) {
            Err(Error::Runtime(RuntimeError::Output { .. } | RuntimeError::Run { .. })) => false,
            holds => holds?,
        };
        if holds {
            let mut compared = self.model.compared.lock().unwrap_or_else(PoisonError::into_inner);
            *compared = (compared.0.max(tokens), compared.1.max(begin));
        }
        Ok(holds)
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
    ///
    /// # Errors
    /// If the run fails, or if the cache does not hold every position of the batch.
    pub(super) fn cache(
        &mut self,
        engine: &Engine<'_>,
        batch: &Batch,
        directions: &[&[f32]],
        past: Option<Vec<Value>>,
    ) -> Result<Vec<Value>, RuntimeError> {
        let presents: Vec<String> = self.interface.cache.iter().map(|slot| slot.present.clone()).collect();
        let found = self.run(engine, batch, directions, past, &presents)?;
        let shapes: Vec<_> = found.iter().map(|part| self.model.shape(part)).collect();
        batch::check_cache(&self.interface, &shapes, batch.mask.ncols())?;
        Ok(found)
    }
}
