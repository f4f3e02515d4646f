//! Values of small constant vectors: norm scales and what little arithmetic exporters leave on them.

use half::{bf16, f16};

use super::external::read_exact_at;
use super::graph::{Graph, ValueId, varint_halves};
use super::tensor::{DataType, Storage};

/// Vectors above this many elements are no norm scale.
const LIMIT: u64 = 1 << 20;

/// The elements of a constant float value, flattened: a tensor of the file, or one that is cast, added to or
/// multiplied with others. `None` where it is something else.
pub fn vector(graph: &Graph<'_>, value: ValueId) -> Option<Vec<f64>> {
    if graph.tensor(value).is_some() {
        return tensor(graph, value);
    }
    let node = graph.producer(value)?;
    let input = |slot: usize| vector(graph, graph.input(node, slot)?);
    let both = |f: fn(f64, f64) -> f64| {
        let (a, b) = (input(0)?, input(1)?);
        match (a.len(), b.len()) {
            (n, m) if n == m => Some(a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect()),
            (_, 1) => Some(a.iter().map(|a| f(*a, b[0])).collect()),
            (1, _) => Some(b.iter().map(|b| f(a[0], *b)).collect()),
            _ => None,
        }
    };
    match graph.op(node) {
        "Constant" => graph.node(node).attr("value_float").and_then(|a| a.f).map(|f| vec![f64::from(f)]),
        "Cast" | "Identity" | "Unsqueeze" | "Reshape" | "Squeeze" => input(0),
        "Add" => both(|a, b| a + b),
        "Mul" => both(|a, b| a * b),
        _ => None,
    }
}

fn tensor(graph: &Graph<'_>, value: ValueId) -> Option<Vec<f64>> {
    let tensor = graph.tensor_ref(value)?;
    if tensor.elements() > LIMIT {
        return None;
    }
    let (path, offset, length) = match &tensor.storage {
        Storage::Embedded { offset, length } | Storage::Varints { offset, length } => {
            (&graph.model.path, *offset, *length)
        }
        Storage::External { path, offset, length, .. } => (path, *offset, *length),
        Storage::Opaque => return None,
    };
    let mut bytes = vec![0; usize::try_from(length).ok()?];
    read_exact_at(&std::fs::File::open(path).ok()?, &mut bytes, offset).ok()?;
    if matches!(tensor.storage, Storage::Varints { .. }) {
        bytes = varint_halves(&bytes)?.into_iter().flat_map(u16::to_le_bytes).collect();
    }
    let halves = || bytes.as_chunks::<2>().0.iter().map(|b| u16::from_le_bytes(*b));
    let values: Vec<f64> = match tensor.dtype {
        DataType::FLOAT => bytes.as_chunks::<4>().0.iter().map(|b| f64::from(f32::from_le_bytes(*b))).collect(),
        DataType::DOUBLE => bytes.as_chunks::<8>().0.iter().map(|b| f64::from_le_bytes(*b)).collect(),
        DataType::FLOAT16 => halves().map(|h| f64::from(f16::from_bits(h))).collect(),
        DataType::BFLOAT16 => halves().map(|h| f64::from(bf16::from_bits(h))).collect(),
        _ => return None,
    };
    (values.len() as u64 == tensor.elements()).then_some(values)
}
