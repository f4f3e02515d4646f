//! Gated terms in a direction file.

use std::collections::HashMap;

use safetensors::tensor::SafeTensors;

use super::{MOST_PLACES, Tensors, shown, single};
use crate::edit::{Factor, GatedTerm, RadialBasis, Reading, Shape};

/// Gated terms that are read, at most.
const MOST_GATES: usize = 64;

/// Adds the terms to the tensors and the metadata of a file. Returns the version that a reader must know; `None` where there
/// is no term.
pub(super) fn encode(
    terms: &[GatedTerm],
    tensors: &mut Tensors,
    metadata: &mut HashMap<String, String>,
) -> Option<&'static str> {
    let mut version = None;
    for (n, term) in terms.iter().enumerate() {
        let (width, factors) = (term.vector().len(), term.factors());
        let shapes: Vec<&str> = factors.iter().map(|factor| factor.shape.name()).collect();
        let linear: Vec<&[f64]> = factors.iter().filter_map(|factor| factor.reading.linear()).collect();
        let weights = single(&mut linear.iter().copied().flatten().copied());
        let offsets = single(&mut factors.iter().map(|factor| factor.offset));
        tensors.push((gate_key(n, "vector"), vec![width], single(&mut term.vector().iter().copied())));
        tensors.push((gate_key(n, "weights"), vec![linear.len(), width], weights));
        tensors.push((gate_key(n, "offsets"), vec![factors.len()], offsets));
        metadata.insert(format!("lancet.{}", gate_key(n, "layer")), term.layer().to_string());
        metadata.insert(format!("lancet.{}", gate_key(n, "shapes")), shapes.join(" "));
        version = version.or(Some("2"));
        for (at, basis) in factors.iter().enumerate().filter_map(|(at, one)| Some((at, one.reading.radial()?))) {
            version = Some("3");
            for (part, shape, values) in radial_parts(basis) {
                tensors.push((radial_key(n, at, part), shape, single(&mut values.iter().copied())));
            }
        }
    }
    version
}

/// The name of a part of the gated term `n`.
fn gate_key(n: usize, part: &str) -> String {
    format!("gate.{n}.{part}")
}

/// The name of a part of the radial basis functions that factor `at` of the gated term `n` reads.
fn radial_key(n: usize, at: usize, part: &str) -> String {
    gate_key(n, &format!("radial.{at}.{part}"))
}

/// The parts of radial basis functions with their shapes.
fn radial_parts(basis: &RadialBasis) -> [(&'static str, Vec<usize>, &[f64]); 4] {
    let (k, m) = (basis.dims(), basis.count());
    [
        (RADIAL_PARTS[0], vec![k, basis.width()], &basis.projection),
        (RADIAL_PARTS[1], vec![k], &basis.shift),
        (RADIAL_PARTS[2], vec![m, k], &basis.centers),
        (RADIAL_PARTS[3], vec![m], &basis.weights),
    ]
}

/// The tensors of radial basis functions.
const RADIAL_PARTS: [&str; 4] = ["projection", "shift", "centers", "weights"];

/// The gated terms of a file, or what is wrong with them in words.
pub(super) fn decode(metadata: &HashMap<String, String>, tensors: &SafeTensors<'_>) -> Result<Vec<GatedTerm>, String> {
    let count = (0..MOST_GATES).take_while(|n| tensors.tensor(&gate_key(*n, "vector")).is_ok()).count();
    let of = |n: usize| {
        let radial = (0..GatedTerm::MOST_FACTORS).flat_map(move |at| RADIAL_PARTS.map(|part| radial_key(n, at, part)));
        GATE_PARTS.iter().map(move |part| gate_key(n, part)).chain(radial)
    };
    let names = || tensors.names().into_iter().filter(|name| name.starts_with("gate."));
    let known: HashMap<String, usize> = (0..MOST_GATES).flat_map(|n| of(n).map(move |name| (name, n))).collect();
    if let Some(other) = names().find(|name| !known.contains_key(*name)) {
        return Err(format!("`{}` is no part of one", shown(other)));
    }
    if names().any(|name| known[name] >= count) {
        return Err("a part of one is missing".into());
    }
    (0..count).map(|n| gate(metadata, tensors, n)).collect()
}

/// The tensors of one gated term.
const GATE_PARTS: [&str; 3] = ["vector", "weights", "offsets"];

fn gate(metadata: &HashMap<String, String>, tensors: &SafeTensors<'_>, n: usize) -> Result<GatedTerm, String> {
    let find = |name: &str| tensors.tensor(name).map_err(|_| format!("`{name}` is missing"));
    let values = |name: String, shape: &[usize]| {
        let view = find(&name)?;
        if view.shape() != shape {
            return Err(format!("`{name}` has the shape {:?}, not {shape:?}", view.shape()));
        }
        super::decode(&view).ok_or_else(|| format!("`{name}` has the type {:?}", view.dtype()))
    };
    let text = |part: &str| {
        let key = format!("lancet.{}", gate_key(n, part));
        metadata.get(&key).cloned().ok_or_else(|| format!("it lacks `{key}`"))
    };
    let layer = text("layer")?;
    let at = layer.parse::<u64>().ok().filter(|layer| *layer < MOST_PLACES).and_then(|l| usize::try_from(l).ok());
    let at = at.ok_or_else(|| format!("`{}` is no layer", shown(&layer)))?;
    let shapes = text("shapes")?;
    let shape = |word: &str| Shape::ALL.into_iter().find(|shape| shape.name() == word);
    let shapes: Vec<Shape> = (shapes.split(' ').map(|word| shape(word).ok_or(word)).collect::<Result<_, _>>())
        .map_err(|word| format!("`{}` is no shape", shown(word)))?;
    let width = find(&gate_key(n, "vector"))?.shape().iter().product::<usize>();
    let vector = values(gate_key(n, "vector"), &[width])?;
    let offsets = values(gate_key(n, "offsets"), &[shapes.len()])?;
    let is_radial = |at: usize| RADIAL_PARTS.iter().any(|part| tensors.tensor(&radial_key(n, at, part)).is_ok());
    let radial = |at: usize| -> Result<RadialBasis, String> {
        let centers = find(&radial_key(n, at, "centers"))?;
        let sizes = centers.shape();
        let [m, k] = sizes else { return Err(format!("its centers have the shape {sizes:?}")) };
        let part = |part: &str, shape: &[usize]| values(radial_key(n, at, part), shape);
        Ok(RadialBasis {
            projection: part("projection", &[*k, width])?,
            shift: part("shift", &[*k])?,
            centers: part("centers", sizes)?,
            weights: part("weights", &[*m])?,
        })
    };
    if let Some(at) = (shapes.len()..GatedTerm::MOST_FACTORS).find(|at| is_radial(*at)) {
        return Err(format!("it has {} factors, and factor {at} reads something", shapes.len()));
    }
    let linear = (0..shapes.len()).filter(|at| !is_radial(*at)).count();
    let weights = values(gate_key(n, "weights"), &[linear, width])?;
    let mut rows = weights.chunks(width.max(1));
    let factor = |((at, shape), offset): ((usize, Shape), f64)| {
        let reading = match is_radial(at) {
            true => Reading::Radial(radial(at)?),
            false => Reading::Linear(rows.next().unwrap_or_default().to_vec()),
        };
        Ok(Factor { reading, offset, shape })
    };
    let factors = shapes.into_iter().enumerate().zip(offsets).map(factor).collect::<Result<_, String>>()?;
    GatedTerm::new(at, vector, factors).map_err(|error| error.to_string())
}
