//! What the two sides show, held against each other and against the edit.

use ndarray::ArrayD;

use super::run::{Branch, Found, Looked, ROUNDING_OF_SINGLES, Run, rounding_of};
use crate::edit::{Ablation, Edit, GatedTerm};
use crate::error::Error;
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
        let unit = ablation.unit();
        let allowed = Allowed::for_base(self.base);
        let (mut was, mut is) = (Kept::default(), Kept::default());
        let ran = self.run.visit(before, None, |look| {
            was.take(&look.values, unit, allowed.at(look.rounding), 0.0);
            Ok(())
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.unchecked.push(format!("what the stream keeps: ONNX Runtime cannot run the base: {reason}"));
            return Ok(());
        }
        if was.not_finite {
            found.unchecked.push("what the stream keeps: that of the base holds numbers that are not finite".into());
            return Ok(());
        }
        let largest = was.component;
        let mut apart = Some((0.0f64, 0.0f64));
        let mut coarsest = allowed.arithmetic;
        let ran = self.run.visit(after, None, |look| {
            is.take(&look.values, unit, allowed.at(look.rounding), largest);
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
        self.as_loaded(before, (apart, coarsest), found)?;
        if is.positions == 0 {
            found.failures.push(
                "nothing that a normalisation or the unembedding reads is as wide as the direction in the output"
                    .into(),
            );
            return Ok(());
        }
        let judged = self.without_the_rest(after, &allowed, largest)?.unwrap_or_else(|| is.clone());
        let name = after.0.name(after.1.reads[judged.largest].place);
        if judged.not_finite {
            found.failures.push("the stream of the output holds numbers that are not finite".into());
        } else if judged.excess.is_nan() || judged.excess > 1.0 {
            let reader = after.0.graph.node(after.1.reads[judged.largest].reader).label();
            found.failures.push(format!(
                "`{name}`, which node `{reader}` reads, keeps {:.1} times what rounding explains of the direction: not every \
                 write is ablated",
                judged.excess
            ));
        }
        if was.excess <= 1.0 {
            found.unchecked.push(
                "the stream of the base holds nothing along the direction on these prompts, so nothing can be seen to go"
                    .into(),
            );
        }
        proof.probes += after.1.reads.len();
        proof.positions += is.positions;
        proof.share_before = proof.share_before.max(was.share);
        if proof.largest.is_empty() || is.share > proof.share_after {
            proof.share_after = is.share;
            proof.largest = name;
        }
        Ok(())
    }

    /// Holds the logits of the file as loaded to those of the graph that was looked at: `apart` is the largest difference
    /// with the largest logit, and `coarsest` the relative rounding of the arithmetic.
    fn as_loaded(
        &self,
        before: (&Looked<'_>, &Branch),
        (apart, coarsest): (Option<(f64, f64)>, f64),
        found: &mut Found,
    ) -> Result<(), Error> {
        let bound = 256.0 * coarsest;
        if apart.is_none_or(|(apart, scale)| apart.is_nan() || apart > bound * scale.max(1.0)) {
            let own = self.run.own_difference(before, self.opened)?;
            found.failures.extend(other_logits(apart, own));
        }
        Ok(())
    }

    /// Holds what each read of the output shows to what the first gated terms make of the base in float64: the same up to
    /// the layer of these terms, and there the terms' own numbers.
    fn terms(
        &self,
        before: (&Looked<'_>, &Branch),
        after: (&Looked<'_>, &Branch),
        written: Option<&Vec<ArrayD<f32>>>,
        found: &mut Found,
    ) -> Result<(), Error> {
        let first = self.first_terms(before, after);
        if let Err(why) = &first {
            found.unchecked.push(format!("the numbers of the gated terms: {why}"));
        }
        let first = first.ok();
        let allowed = Allowed::for_base(self.base);
        let mut expected: Vec<Vec<(usize, Rows)>> = Vec::new();
        let mut opened = 0usize;
        let ran = first.as_ref().map_or(Ok(()), |(changed, terms)| {
            self.run.visit(before, None, |mut look| {
                look.values.retain(|(at, _)| at <= changed);
                for (_, rows) in look.values.iter_mut().filter(|(at, _)| at == changed) {
                    opened += rows.change(terms);
                }
                expected.push(look.values);
                Ok(())
            })
        });
        if let Some(reason) = self.run.failed(ran)? {
            found.unchecked.push(format!("the gated terms: ONNX Runtime cannot run the base: {reason}"));
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
            let rounding = if look.rounding > ROUNDING_OF_SINGLES { 8.0 } else { 64.0 } * look.rounding;
            for (at, rows) in expected.get(look.prompt).into_iter().flatten() {
                let there = look.values.iter().find(|(other, _)| other == at).map(|(_, rows)| rows);
                let excess = there.map_or(f64::INFINITY, |there| rows.apart(there, rounding + allowed.activations));
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
        self.as_loaded(before, (apart, coarsest), found)?;
        let Some((changed, _)) = first else { return Ok(()) };
        match worst {
            None => found.failures.push("nothing that a normalisation reads is as wide as the gated terms".into()),
            Some((at, excess)) if excess.is_nan() || excess > 1.0 => {
                let read = &after.1.reads[at];
                let what = if at == changed { "what the gated terms make of it" } else { "what it is in the base" };
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

    /// The read at which the first gated terms show, by its place in the branch, and these terms; or why their numbers
    /// cannot be held to the base's.
    fn first_terms(
        &self,
        before: (&Looked<'_>, &Branch),
        after: (&Looked<'_>, &Branch),
    ) -> Result<(usize, Vec<GatedTerm>), String> {
        let gates = self.edit.gates();
        let layer = gates.iter().map(GatedTerm::layer).min().ok_or("the edit has none")?;
        if self.edit.addition().is_some() {
            return Err("a vector is added to the stream before them".into());
        }
        // in the base: where `resid_pre` of the layer is read
        let graph = &self.base.graph;
        let cached = graph.value(&self.run.interface.logits) != Some(before.1.logits);
        let sum = self.base.lm.stream(cached).blocks.get(layer).map(|block| block.pre.source(graph));
        let of = |read: &Read| match read.place {
            Place::Value(value) => StreamValue::Value(value).source(graph),
            Place::UnnamedSum(node) => StreamValue::Sum(node),
        };
        let changed = before.1.reads.iter().position(|read| Some(of(read)) == sum);
        let changed = changed.filter(|_| before.1.reads.len() == after.1.reads.len());
        let changed = changed.ok_or_else(|| format!("nothing reads the stream at layer {layer}"))?;
        Ok((changed, gates.iter().filter(|term| term.layer() == layer).map(GatedTerm::rounded).collect()))
    }

    /// Where a part of the direction stays by intention, whether a write was missed is seen where all of it is taken off
    /// at run time, at the writes that were found. `None` where nothing stays.
    fn without_the_rest(
        &self,
        after: (&Looked<'_>, &Branch),
        allowed: &Allowed,
        largest: f64,
    ) -> Result<Option<Kept>, Error> {
        if self.edit.leaves_nothing() {
            return Ok(None);
        }
        let understood = self.out.map_err(Clone::clone)?;
        let unit = self.edit.ablation().map(Ablation::unit).unwrap_or_default();
        let mut kept = Kept::default();
        self.run.visit(after, Some((&understood.lm.residual, unit)), |look| {
            kept.take(&look.values, unit, allowed.at(look.rounding), largest);
            Ok(())
        })?;
        Ok(Some(kept))
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
