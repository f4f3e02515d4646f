//! What the two sides show, held against each other and against the edit.

use ndarray::ArrayD;

use super::run::{Branch, Found, Look, Looked, ROUNDING_OF_SINGLES, Run, rounding_of};
use crate::edit::{Ablated, Ablation, Addition, Edit, GatedTerm};
use crate::error::Error;
use crate::lm::projection::write_type;
use crate::lm::{Refusal, StreamValue, Treatment};
use crate::onnx::DataType;
use crate::onnx::ops::ActivationRounding;
use crate::pipeline::opened::{Opened, Understood};
use crate::proof::measure::{Rows, difference};
use crate::proof::{Kept, Place, Read, Tolerance};
use crate::report::StreamProof;

/// What it takes to judge one branch of a model.
pub(super) struct Judged<'a> {
    pub run: &'a Run<'a>,
    pub opened: &'a Opened,
    pub base: &'a Understood<'a>,
    pub out: Result<&'a Understood<'a>, &'a Refusal>,
    pub edit: &'a Edit,
}

impl Judged<'_> {
    /// Runs both sides and judges each part of the edit.
    pub(super) fn branch(
        &self,
        before: (&Looked<'_>, &Branch),
        after: (&Looked<'_>, &Branch),
        written: Option<&Vec<ArrayD<f32>>>,
        found: &mut Found,
        proof: &mut StreamProof,
    ) -> Result<(), Error> {
        let Some(ablation) = self.edit.ablation() else {
            return self.terms(before, after, written, found);
        };
        if !self.edit.gates().is_empty() {
            found
                .unchecked
                .push("the numbers of the gated terms: a direction is ablated from the stream before them".into());
        }
        let directions = ablation.vectors();
        let allowed = Allowed::for_base(self.base);
        let (mut was, mut is) = (Along::of(directions), Along::of(directions));
        let ran = self.run.visit(before, None, |look| {
            was.take(&look, &allowed, None);
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.unchecked.push(format!("what the stream keeps: ONNX Runtime cannot run the base: {reason}"));
            return Ok(());
        }
        if was.not_finite() {
            found.unchecked.push("what the stream keeps: that of the base holds numbers that are not finite".into());
            return Ok(());
        }
        let mut apart = Some((0.0f64, 0.0f64));
        let mut coarsest = allowed.arithmetic;
        let ran = self.run.visit(after, None, |look| {
            is.take(&look, &allowed, Some(&was));
            coarsest = coarsest.max(look.rounding);
            if let Some(written) = written {
                let more = difference(&written[look.prompt], &look.logits);
                apart = apart.zip(more).map(|(a, b)| (a.0.max(b.0), a.1.max(b.1)));
            }
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.failures.push(format!("ONNX Runtime runs the base and cannot run the output: {reason}"));
            return Ok(());
        }
        self.as_loaded(before, (apart, coarsest, 0.0), found)?;
        if is.worst().positions == 0 {
            found.failures.push(
                "nothing that a normalisation or the unembedding reads is as wide as the direction in the output"
                    .into(),
            );
            return Ok(());
        }
        let judged = self.without_the_rest(after, &allowed, &was)?.unwrap_or_else(|| is.clone());
        let not_finite = judged.not_finite();
        let judged = judged.worst();
        if judged.positions == 0 {
            found.failures.push("no write that was found leads to what the normalisations of the output read".into());
            return Ok(());
        }
        let name = after.0.name(after.1.reads[judged.largest].place);
        if not_finite {
            found.failures.push("the stream of the output holds numbers that are not finite".into());
        } else if judged.excess.is_nan() || judged.excess > 1.0 {
            let reader = after.0.graph.node(after.1.reads[judged.largest].reader).label();
            found.failures.push(format!(
                "`{name}`, which node `{reader}` reads, keeps {:.1} times what rounding explains of the direction: not every \
                 write is ablated",
                judged.excess
            ));
        }
        if was.worst().excess <= 1.0 {
            found.unchecked.push(
                "the stream of the base holds nothing along the direction on these prompts, so nothing can be seen to go"
                    .into(),
            );
        }
        proof.probes += after.1.reads.len();
        proof.positions += is.worst().positions;
        proof.share_before = proof.share_before.max(was.share());
        if proof.largest.is_empty() || is.share() > proof.share_after {
            proof.share_after = is.share();
            proof.largest = name;
        }
        Ok(())
    }

    /// Holds the logits of the file as loaded to those of the graph that was looked at: `apart` is the largest difference
    /// with the largest logit, `coarsest` the relative rounding of the arithmetic, and `doubt` how far rounding may move the
    /// stream where the edit acts, as a share of its largest number.
    fn as_loaded(
        &self,
        before: (&Looked<'_>, &Branch),
        (apart, coarsest, doubt): (Option<(f64, f64)>, f64, f64),
        found: &mut Found,
    ) -> Result<(), Error> {
        let bound = 256.0 * coarsest + 16.0 * doubt;
        if apart.is_none_or(|(apart, scale)| apart.is_nan() || apart > bound * scale.max(1.0)) {
            let own = self.run.own_difference(before, self.opened)?;
            found.failures.extend(other_logits(apart, own));
        }
        Ok(())
    }

    /// Holds what each read of the output shows to what the first addition or gated terms make of the base in float64: the
    /// same up to their layer, and there their own numbers.
    fn terms(
        &self,
        before: (&Looked<'_>, &Branch),
        after: (&Looked<'_>, &Branch),
        written: Option<&Vec<ArrayD<f32>>>,
        found: &mut Found,
    ) -> Result<(), Error> {
        let first = self.first_change(before, after);
        if let Err(why) = &first {
            found.unchecked.push(format!("the numbers of what is added: {why}"));
        }
        let first = first.ok();
        let allowed = Allowed::for_base(self.base);
        let mut expected: Vec<Vec<(usize, Rows)>> = Vec::new();
        // of the read that the terms act at, prompt by prompt
        let mut doubts: Vec<Vec<f64>> = Vec::new();
        let (mut opened, mut doubt) = (0usize, 0.0f64);
        let ran = first.as_ref().map_or(Ok(()), |change| {
            self.run.visit(before, None, |mut look| {
                look.values.retain(|(at, _)| *at <= change.read);
                for (_, rows) in look.values.iter_mut().filter(|(at, _)| *at == change.read) {
                    opened += change.added.as_ref().map_or(0, |added| rows.add(added));
                    let changed = rows.change(&change.terms);
                    opened += changed.open;
                    doubt = doubt.max(rows.share_of_largest(&changed.doubts));
                    doubts.resize_with(expected.len(), Vec::new);
                    doubts.push(changed.doubts);
                }
                expected.push(look.values);
                Ok(())
            })
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.unchecked.push(format!("what is added: ONNX Runtime cannot run the base: {reason}"));
            return Ok(());
        }
        let (mut apart, mut coarsest) = (Some((0.0f64, 0.0f64)), allowed.arithmetic);
        let mut worst: Option<(usize, f64)> = None;
        let ran = self.run.visit(after, None, |look| {
            coarsest = coarsest.max(look.rounding);
            if let Some(written) = written {
                let more = difference(&written[look.prompt], &look.logits);
                apart = apart.zip(more).map(|(a, b)| (a.0.max(b.0), a.1.max(b.1)));
            }
            // both run the same nodes up to there, so that little but the last sum is rounded
            for (at, rows) in expected.get(look.prompt).into_iter().flatten() {
                let stored = first.as_ref().filter(|change| change.read == *at).map_or(0.0, |change| change.stored);
                let coarsest = look.rounding.max(stored);
                let rounding = if coarsest > ROUNDING_OF_SINGLES { 8.0 } else { 64.0 } * coarsest;
                let there = look.values.iter().find(|(other, _)| other == at).map(|(_, rows)| rows);
                let doubts = first.as_ref().filter(|change| change.read == *at).and_then(|_| doubts.get(look.prompt));
                let doubts = doubts.map_or(&[][..], Vec::as_slice);
                let excess =
                    there.map_or(f64::INFINITY, |there| rows.apart(there, rounding + allowed.activations, doubts));
                if worst.is_none_or(|(_, most)| excess.is_nan() || excess > most) {
                    worst = Some((*at, excess));
                }
            }
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.failures.push(format!("ONNX Runtime runs the base and cannot run the output: {reason}"));
            return Ok(());
        }
        self.as_loaded(before, (apart, coarsest, doubt), found)?;
        let Some(First { read: changed, .. }) = first else { return Ok(()) };
        match worst {
            None => found.failures.push("nothing that a normalisation reads is as wide as what is added".into()),
            Some((at, excess)) if excess.is_nan() || excess > 1.0 => {
                let read = &after.1.reads[at];
                let what = if at == changed { "what the edit makes of it" } else { "what it is in the base" };
                found.failures.push(format!(
                    "`{}`, which node `{}` reads, is not {what}: it is {excess:.1} times as far from it as rounding explains",
                    after.0.name(read.place),
                    after.0.graph.node(read.reader).label(),
                ));
            }
            Some(_) if opened == 0 => found
                .unchecked
                .push("that the gated terms act: none of them is open at any position of these prompts".into()),
            Some(_) => {}
        }
        Ok(())
    }

    /// What the edit adds at the first layer that it changes, or why its numbers cannot be held to the base's.
    fn first_change(&self, before: (&Looked<'_>, &Branch), after: (&Looked<'_>, &Branch)) -> Result<First, String> {
        let (additions, gates) = (self.edit.additions(), self.edit.gates());
        let layers = additions.iter().map(|one| one.layer).chain(gates.iter().map(GatedTerm::layer));
        let layer = layers.min().ok_or("the edit adds nothing")?;
        // in the base: where the stream is read that enters the layer, or leaves the last one
        let graph = &self.base.graph;
        let cached = graph.value(&self.run.interface.logits) != Some(before.1.logits);
        let blocks = &self.base.lm.stream(cached).blocks;
        let stream = blocks.get(layer).map(|block| block.pre).or(blocks.last().map(|block| block.post));
        let sum = stream.map(|value| value.source(graph));
        let of = |read: &Read| match read.place {
            Place::Value(value) => StreamValue::Value(value).source(graph),
            Place::UnnamedSum(node) => StreamValue::Sum(node),
        };
        let read = before.1.reads.iter().position(|read| Some(of(read)) == sum);
        let read = read.filter(|_| before.1.reads.len() == after.1.reads.len());
        let read = read.ok_or_else(|| format!("nothing reads the stream at layer {layer}"))?;
        let added = additions.iter().find(|one| one.layer == layer).map(Addition::scaled);
        let write = added.as_ref().and_then(|_| self.base.lm.stream(cached).last_before(layer));
        let stored = write.and_then(|write| rounding_of(write_type(graph, write)?)).unwrap_or(0.0);
        let terms = gates.iter().filter(|term| term.layer() == layer).map(GatedTerm::rounded).collect();
        Ok(First { read, added, stored, terms })
    }

    /// Where a part of a direction stays by intention, whether a write was missed is seen where all of it is taken off
    /// at run time, at the writes that were found. `None` where nothing stays.
    fn without_the_rest(
        &self,
        after: (&Looked<'_>, &Branch),
        allowed: &Allowed,
        was: &Along<'_>,
    ) -> Result<Option<Along<'_>>, Error> {
        if self.edit.leaves_nothing() {
            return Ok(None);
        }
        let understood = self.out.map_err(Clone::clone)?;
        let directions = self.edit.ablation().map(Ablation::vectors).unwrap_or_default();
        let cached = understood.graph.value(&self.run.interface.logits) != Some(after.1.logits);
        let mut kept = Along::of(directions);
        self.run.visit(after, Some((understood.lm.stream(cached), directions)), |look| {
            kept.take(&look, allowed, Some(was));
            Ok(())
        })?;
        Ok(Some(kept))
    }
}

/// What is added to the stream at the first layer that an edit changes.
struct First {
    /// The read at which it shows, by its place in the branch.
    read: usize,
    /// The vector, `[d_model]`.
    added: Option<Vec<f64>>,
    /// Relative rounding of the type that the file holds it in, alone or in a bias; 0 where there is none.
    stored: f64,
    /// The gated terms, which come after it.
    terms: Vec<GatedTerm>,
}

/// What a model keeps along each direction of an ablation.
#[derive(Clone)]
struct Along<'a> {
    directions: &'a [Ablated],
    kept: Vec<Kept>,
}

impl<'a> Along<'a> {
    fn of(directions: &'a [Ablated]) -> Self {
        Self { directions, kept: vec![Kept::default(); directions.len()] }
    }

    /// Takes in what a run of one prompt shows; `base` is what the base keeps.
    fn take(&mut self, look: &Look, allowed: &Allowed, base: Option<&Along<'_>>) {
        for (n, (kept, direction)) in self.kept.iter_mut().zip(self.directions).enumerate() {
            let largest = base.map_or(0.0, |base| base.kept[n].component);
            kept.take(&look.values, direction.unit(), allowed.at(look.rounding), largest);
        }
    }

    /// That of the direction which most is left of, by what rounding explains.
    fn worst(&self) -> &Kept {
        let order = |kept: &&Kept| if kept.excess.is_nan() { f64::INFINITY } else { kept.excess };
        let worst = self.kept.iter().max_by(|a, b| order(a).total_cmp(&order(b)));
        worst.expect("an ablation has a direction")
    }

    /// The largest share of a position's length that lies along one of the directions.
    fn share(&self) -> f64 {
        self.kept.iter().map(|kept| kept.share).fold(0.0, f64::max)
    }

    fn not_finite(&self) -> bool {
        self.kept.iter().any(|kept| kept.not_finite)
    }
}

/// What is wrong where the file as loaded and the graph that was looked at differ by more than rounding: `apart` is the
/// largest difference with the largest logit, `None` for another shape; `own` is the largest difference of the base,
/// which kernels of a few bits, chosen when a file is loaded, may bring.
fn other_logits(apart: Option<(f64, f64)>, own: Option<f64>) -> Option<String> {
    match apart {
        Some((apart, _)) if own.is_some_and(|own| apart <= 4.0 * own) => None,
        Some((apart, _)) => Some(format!(
            "the file as ONNX Runtime loads it computes other logits than the graph that was looked at (by {apart:.2e})"
        )),
        None => Some("the file as ONNX Runtime loads it returns logits of another shape".into()),
    }
}

/// What is allowed for the types that a base computes in.
#[derive(Debug, Clone, Copy)]
struct Allowed {
    /// What the stream may keep; the rounding of the read values' own type comes on top.
    stream: Tolerance,
    /// Relative rounding of the arithmetic, as it shows between two ways to run one graph.
    arithmetic: f64,
    /// Relative rounding of activations that the graph itself rounds to 8 bits; 0 where it rounds none.
    activations: f64,
}

impl Allowed {
    fn for_base(base: &Understood<'_>) -> Self {
        let mut relative: f64 = 1e-5;
        let mut arithmetic: f64 = 0.0;
        let mut share: f64 = 0.0;
        let of_type = |dtype: Option<DataType>| match dtype {
            Some(DataType::FLOAT16) => 2f64.powi(-9),
            Some(DataType::BFLOAT16) => 2f64.powi(-6),
            _ => 0.0,
        };
        for (graph, writer) in base.writers() {
            for target in &writer.weights {
                let dtype = graph.model.tensor(target.tensor).dtype;
                relative = relative.max(of_type(Some(dtype)));
                arithmetic = arithmetic.max(rounding_of(dtype).unwrap_or(0.0));
                if let Some(quantised) = target.quantised.filter(|_| writer.treatment == Treatment::Rounded) {
                    let coarse = if quantised.bits <= 2 { 3e-2 } else { 5e-3 };
                    relative = relative.max(coarse);
                    share = share.max(0.2 * coarse);
                }
            }
            relative = relative.max(of_type(writer.writes.first().and_then(|write| graph.elem_type(write.value))));
        }
        let graph = &base.graph;
        // the stream itself is rounded to 8 bits there
        let fixed = graph.nodes().any(|node| graph.rounding(node) == ActivationRounding::Stored);
        // activations of 8 bits round differently as soon as anything before them does
        let rounds = [ActivationRounding::Dynamic, ActivationRounding::DynamicRows];
        let dynamic = graph.nodes().any(|node| rounds.contains(&graph.rounding(node)));
        Self {
            stream: Tolerance { rounding: if fixed { 2f64.powi(-8) } else { 0.0 }, relative, share },
            arithmetic: if fixed || dynamic { 2f64.powi(-8) } else { arithmetic },
            activations: if fixed || dynamic { 2f64.powi(-8) } else { 0.0 },
        }
    }

    /// For values of a type that is rounded by `rounding`.
    fn at(&self, rounding: f64) -> Tolerance {
        Tolerance { rounding: rounding.max(self.stream.rounding), ..self.stream }
    }
}
