//! Teacher-forced log-likelihoods of token sequences.

use ndarray::{Array1, Axis};

use super::{Engine, LOGITS_BUDGET, Session};
use crate::error::Error;
use crate::instrument::{Request, WINDOW_INPUTS};
use crate::onnx::DataType;
use crate::runtime::batch::{self, Batch};
use crate::runtime::{Backend, RuntimeError, Tensor};

impl Engine<'_> {
    /// Loads the model to score token sequences with ([`Engine::log_likelihoods`]).
    ///
    /// # Errors
    /// If ONNX Runtime refuses the model.
    pub fn scorer(&self) -> Result<Session, Error> {
        self.session(Request { window: true, last_positions: 1, ..Request::default() })
    }

    /// `log p(row[t] | row[..t])` for every `t` in `from..row.len()` of each row, natural logarithm, softmax in float64;
    /// `from` of a row is 1 at least, and where it is its length nothing is returned. `session` is from
    /// [`Engine::scorer`]. Logits are not kept, and a run returns at most 256 MB of them: a batch is cut into fewer
    /// rows, and a row into windows of positions, each of which runs the whole row again.
    ///
    /// # Errors
    /// If a run fails, if logits are not finite, or on cancellation.
    ///
    /// # Panics
    /// If `from` has another length than `rows`, holds a 0, or is past the end of a row.
    pub fn log_likelihoods(
        &self,
        session: &mut Session,
        rows: &[Vec<u32>],
        from: &[usize],
    ) -> Result<Vec<Vec<f64>>, Error> {
        self.log_likelihoods_within(session, rows, from, LOGITS_BUDGET)
    }

    /// [`Engine::log_likelihoods`] with another bound on the bytes of logits that a run returns.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there.
    pub fn log_likelihoods_within(
        &self,
        session: &mut Session,
        rows: &[Vec<u32>],
        from: &[usize],
        budget: usize,
    ) -> Result<Vec<Vec<f64>>, Error> {
        assert_eq!(rows.len(), from.len(), "a start for each row");
        assert!(rows.iter().zip(from).all(|(row, from)| (1..=row.len()).contains(from)), "a start within each row");
        let mut found: Vec<Vec<f64>> = rows.iter().zip(from).map(|(row, from)| vec![0.0; row.len() - from]).collect();
        let wanted: Vec<usize> = (0..rows.len()).filter(|&row| from[row] < rows[row].len()).collect();
        let lengths: Vec<usize> = wanted.iter().map(|&row| rows[row].len()).collect();
        for members in batch::plan(&lengths, self.batch, &session.interface) {
            let members: Vec<usize> = members.into_iter().map(|at| wanted[at]).collect();
            let scored = members.iter().map(|&row| rows[row].len() - from[row]).max().expect("no batch is empty");
            let width = rows[members[0]].len();
            let computed = if session.built.whole_logits { width } else { scored };
            let at_once = (budget / (computed * self.bytes_a_position())).max(1);
            for members in members.chunks(at_once) {
                let positions = (budget / (members.len() * self.bytes_a_position())).max(1);
                self.score(session, rows, from, members, positions, &mut found)?;
            }
        }
        Ok(found)
    }

    /// Scores the rows of one batch, so many positions a run.
    fn score(
        &self,
        session: &mut Session,
        rows: &[Vec<u32>],
        from: &[usize],
        members: &[usize],
        positions: usize,
        found: &mut [Vec<f64>],
    ) -> Result<(), Error> {
        let texts: Vec<&[u32]> = members.iter().map(|&row| rows[row].as_slice()).collect();
        let batch = Batch::new(&texts, self.pad);
        let width = batch.ids.ncols();
        // the position before a token tells about it
        let scored = members.iter().map(|&row| rows[row].len() - from[row]).max().expect("no batch is empty");
        let mut start = width - 1 - scored;
        while start < width - 1 {
            self.check_cancelled()?;
            let end = (start + positions).min(width - 1);
            let mut feeds = batch::feeds(&session.model, &session.interface, &batch.ids, &batch.mask)?;
            for (name, value) in WINDOW_INPUTS.iter().zip([start, end]) {
                let value = Array1::from_elem(1, i64::try_from(value).expect("positions fit in i64"));
                feeds.push(((*name).into(), session.model.upload(Tensor::I64(value.into_dyn()), DataType::INT64)?));
            }
            let none = vec![&[] as &[f32]; batch.ids.nrows()];
            feeds.extend(self.steering_feeds(&session.model, &session.built, &none)?);
            let logits = session.run(&batch, feeds)?.pop().expect("logits were asked for");
            for (at, &row) in members.iter().enumerate() {
                let of_row = logits.index_axis(Axis(0), at);
                let padding = width - rows[row].len();
                for column in start.max(padding + from[row] - 1)..end {
                    let token = column + 1 - padding;
                    let at_position = of_row.index_axis(Axis(0), column - start);
                    let value = log_probability(at_position.iter().copied(), rows[row][token] as usize)
                        .ok_or_else(|| RuntimeError::not_finite(&rows[row]))?;
                    found[row][token - from[row]] = value;
                }
            }
            start = end;
        }
        Ok(())
    }
}

/// `log softmax(logits)[token]` in float64; `None` if a logit is not finite, or the token is none of them.
fn log_probability(logits: impl Iterator<Item = f32> + Clone, token: usize) -> Option<f64> {
    let largest = logits.clone().map(f64::from).try_fold(f64::NEG_INFINITY, |m, v| v.is_finite().then(|| m.max(v)))?;
    let sum: f64 = logits.clone().map(|v| (f64::from(v) - largest).exp()).sum();
    let own = f64::from(logits.clone().nth(token)?);
    Some(own - largest - sum.ln())
}

#[cfg(test)]
mod tests {
    use super::log_probability;

    #[test]
    fn log_probabilities_are_exact_and_finite() {
        let logits = [1000.0f32, 999.0, -1000.0];
        let sum: f64 = 1.0 + (-1.0f64).exp();
        assert!((log_probability(logits.into_iter(), 1).unwrap() + 1.0 + sum.ln()).abs() < 1e-12);
        assert!((log_probability(logits.into_iter(), 2).unwrap() + 2000.0 + sum.ln()).abs() < 1e-12);
        assert_eq!(log_probability([f32::NAN, 0.0].into_iter(), 1), None);
        assert_eq!(log_probability([0.0, f32::INFINITY].into_iter(), 0), None);
        assert_eq!(log_probability([0.0].into_iter(), 1), None);
    }
}
