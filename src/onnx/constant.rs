//! Values of small constants: shapes and axes, what a bias or a mask is filled with, norm scales and what little
//! arithmetic exporters leave on them.

use half::{bf16, f16};

use super::error::OnnxError;
use super::external::read_exact_at;
use super::graph::{Graph, ValueId, varint_halves};
use super::ops::{Elements, Rule};
use super::proto::{NodeProto, TensorProto};
use super::tensor::{DataType, Storage};

/// Vectors above this many elements are no norm scale.
const LIMIT: u64 = 1 << 20;

/// Values that are looked at before a constant counts as too involved; exporters leave a handful.
const STEPS: usize = 64;

/// The elements of a tensor whose payload the skeleton holds whole, whichever field they are in: `raw_data`,
/// `float_data`, `double_data`, `int32_data` (which holds 8- and 16-bit types and `bool` too, 16-bit floats by their bits),
/// `int64_data`, `uint64_data`. `None` for other types, for data elsewhere and where the number of elements is wrong.
pub fn numbers(tensor: &TensorProto) -> Option<Vec<f64>> {
    let dtype = DataType(tensor.data_type?);
    let raw = tensor.raw_data.as_deref().unwrap_or(&[]);
    let values: Vec<f64> = if raw.is_empty() { listed(tensor, dtype)? } else { decoded(raw, dtype)? };
    (tensor.data_location != Some(1) && is_count(tensor, values.len())).then_some(values)
}

fn is_count(tensor: &TensorProto, count: usize) -> bool {
    let elements = tensor.dims.iter().try_fold(1u64, |n, &d| n.checked_mul(u64::try_from(d).ok()?));
    elements == Some(count as u64)
}

/// Elements from the typed field of a type (ONNX specification, `TensorProto`).
fn listed(tensor: &TensorProto, dtype: DataType) -> Option<Vec<f64>> {
    let int32 = || tensor.int32_data.iter();
    Some(match dtype {
        DataType::FLOAT => tensor.float_data.iter().map(|&v| f64::from(v)).collect(),
        DataType::DOUBLE => tensor.double_data.clone(),
        DataType::INT64 => tensor.int64_data.iter().map(|&v| v as f64).collect(),
        DataType(12 | 13) => tensor.uint64_data.iter().map(|&v| v as f64).collect(),
        DataType::FLOAT16 => int32().map(|&v| f64::from(f16::from_bits(v as u16))).collect(),
        DataType::BFLOAT16 => int32().map(|&v| f64::from(bf16::from_bits(v as u16))).collect(),
        DataType(2..=6 | 9) => int32().map(|&v| f64::from(v)).collect(),
        _ => return None,
    })
}

/// Elements from little-endian bytes.
fn decoded(raw: &[u8], dtype: DataType) -> Option<Vec<f64>> {
    fn chunks<const N: usize>(raw: &[u8], read: fn([u8; N]) -> f64) -> Option<Vec<f64>> {
        let (chunks, rest) = raw.as_chunks::<N>();
        rest.is_empty().then(|| chunks.iter().map(|chunk| read(*chunk)).collect())
    }
    match dtype {
        DataType::FLOAT => chunks(raw, |b| f64::from(f32::from_le_bytes(b))),
        DataType::DOUBLE => chunks(raw, f64::from_le_bytes),
        DataType::FLOAT16 => chunks(raw, |b| f64::from(f16::from_le_bytes(b))),
        DataType::BFLOAT16 => chunks(raw, |b| f64::from(bf16::from_le_bytes(b))),
        DataType::INT64 => chunks(raw, |b| i64::from_le_bytes(b) as f64),
        DataType(13) => chunks(raw, |b| u64::from_le_bytes(b) as f64),
        DataType::INT32 => chunks(raw, |b| f64::from(i32::from_le_bytes(b))),
        DataType(12) => chunks(raw, |b| f64::from(u32::from_le_bytes(b))),
        DataType(5) => chunks(raw, |b| f64::from(i16::from_le_bytes(b))),
        DataType(4) => chunks(raw, |b| f64::from(u16::from_le_bytes(b))),
        DataType::INT8 => chunks(raw, |b| f64::from(i8::from_le_bytes(b))),
        DataType::UINT8 | DataType::BOOL => chunks(raw, |b: [u8; 1]| f64::from(b[0])),
        _ => None,
    }
}

/// The elements of an int64 or int32 tensor whose payload the skeleton holds whole.
pub fn ints(tensor: &TensorProto) -> Option<Vec<i64>> {
    let raw = tensor.raw_data.as_deref().unwrap_or(&[]);
    let values: Vec<i64> = match DataType(tensor.data_type?) {
        DataType::INT64 if !raw.is_empty() => raw.as_chunks::<8>().0.iter().map(|b| i64::from_le_bytes(*b)).collect(),
        DataType::INT64 => tensor.int64_data.clone(),
        DataType::INT32 if !raw.is_empty() => {
            raw.as_chunks::<4>().0.iter().map(|b| i64::from(i32::from_le_bytes(*b))).collect()
        }
        DataType::INT32 => tensor.int32_data.iter().map(|&i| i64::from(i)).collect(),
        _ => return None,
    };
    (tensor.data_location != Some(1) && is_count(tensor, values.len())).then_some(values)
}

/// The integers of a standard `Constant` node. One with several attributes is malformed and has none.
pub fn node_ints(node: &NodeProto) -> Option<Vec<i64>> {
    let [attribute] = node.attribute.as_slice() else { return None };
    match attribute.name.as_deref()? {
        "value" => ints(attribute.t.as_ref()?),
        "value_int" => attribute.i.map(|i| vec![i]),
        "value_ints" => Some(attribute.ints.clone()),
        _ => None,
    }
}

/// The number that every element of a value is, whatever is fed: a small tensor or `Constant`, a `ConstantOfShape`, or
/// what only moves such elements about. `None` where it is something else, is not known, or has no elements.
pub fn uniform(graph: &Graph<'_>, value: ValueId) -> Option<f64> {
    let mut value = value;
    let mut converted = false;
    for _ in 0..STEPS {
        if graph.is_default(value) {
            return None;
        }
        let found = match graph.producer(value) {
            None => same(&numbers(graph.small_tensor(value)?)?),
            Some(id) => {
                let (node, operator) = (graph.node(id), graph.operator(id)?);
                match (operator.shape, operator.elements) {
                    (_, Elements::Same | Elements::Converted | Elements::Moved) => {
                        converted |= operator.elements == Elements::Converted;
                        value = graph.input(id, 0)?;
                        continue;
                    }
                    (Rule::Constant, _) => same(&node_numbers(node)?),
                    (Rule::ShapeInput, _) => match node.attr("value") {
                        Some(attribute) => same(&numbers(attribute.t.as_ref()?)?),
                        None => Some(0.0),
                    },
                    _ => None,
                }
            }
        };
        // other numbers may be rounded on the way
        return found.filter(|number| !converted || *number == 0.0 || *number == 1.0);
    }
    None
}

/// Whether a value is zero whatever is fed.
pub fn is_zero(graph: &Graph<'_>, value: ValueId) -> bool {
    uniform(graph, value) == Some(0.0)
}

fn same(numbers: &[f64]) -> Option<f64> {
    let first = *numbers.first()?;
    numbers.iter().all(|number| *number == first).then_some(first)
}

fn node_numbers(node: &NodeProto) -> Option<Vec<f64>> {
    let [attribute] = node.attribute.as_slice() else { return None };
    match attribute.name.as_deref()? {
        "value" => numbers(attribute.t.as_ref()?),
        "value_float" => attribute.f.map(|f| vec![f64::from(f)]),
        "value_floats" => Some(attribute.floats.iter().map(|&f| f64::from(f)).collect()),
        "value_int" => attribute.i.map(|i| vec![i as f64]),
        "value_ints" => Some(attribute.ints.iter().map(|&i| i as f64).collect()),
        _ => None,
    }
}

/// The elements of a constant float value, flattened: a tensor of the file, or one that is cast, added to or
/// multiplied with others. `None` where it is something else, and where it cannot be read; [`read_vector`] tells these
/// apart.
pub fn vector(graph: &Graph<'_>, value: ValueId) -> Option<Vec<f64>> {
    read_vector(graph, value).ok().flatten()
}

/// The elements of a constant float value, flattened: a tensor of the file, or one that is cast, added to or
/// multiplied with others. `None` where it is something else.
///
/// # Errors
/// If a file that holds its elements cannot be read.
pub fn read_vector(graph: &Graph<'_>, value: ValueId) -> Result<Option<Vec<f64>>, OnnxError> {
    evaluate(graph, value, &mut STEPS.clone())
}

fn evaluate(graph: &Graph<'_>, value: ValueId, steps: &mut usize) -> Result<Option<Vec<f64>>, OnnxError> {
    let Some(left) = steps.checked_sub(1).filter(|_| !graph.is_default(value)) else { return Ok(None) };
    *steps = left;
    if graph.tensor(value).is_some() {
        return tensor(graph, value);
    }
    let Some(node) = graph.producer(value) else { return Ok(None) };
    let mut input = |slot: usize| match graph.input(node, slot) {
        Some(input) => evaluate(graph, input, steps),
        None => Ok(None),
    };
    Ok(match graph.op(node) {
        "Constant" => node_numbers(graph.node(node)),
        "Cast" | "Identity" | "Unsqueeze" | "Reshape" | "Squeeze" => input(0)?,
        "Add" => both(input(0)?, input(1)?, |a, b| a + b),
        "Mul" => both(input(0)?, input(1)?, |a, b| a * b),
        _ => None,
    })
}

fn both(a: Option<Vec<f64>>, b: Option<Vec<f64>>, f: fn(f64, f64) -> f64) -> Option<Vec<f64>> {
    let (a, b) = (a?, b?);
    match (a.len(), b.len()) {
        (n, m) if n == m => Some(a.iter().zip(&b).map(|(a, b)| f(*a, *b)).collect()),
        (_, 1) => Some(a.iter().map(|a| f(*a, b[0])).collect()),
        (1, _) => Some(b.iter().map(|b| f(a[0], *b)).collect()),
        _ => None,
    }
}

fn tensor(graph: &Graph<'_>, value: ValueId) -> Result<Option<Vec<f64>>, OnnxError> {
    let Some(tensor) = graph.tensor_ref(value).filter(|tensor| tensor.elements() <= LIMIT) else { return Ok(None) };
    let (path, offset, length) = match &tensor.storage {
        Storage::Embedded { offset, length } | Storage::Varints { offset, length } => {
            (&graph.model.path, *offset, *length)
        }
        Storage::External { path, offset, length, .. } => (path, *offset, *length),
        Storage::Opaque => return Ok(graph.small_tensor(value).and_then(numbers)),
    };
    if !tensor.dtype.is_float() {
        return Ok(None);
    }
    // no type takes more than ten bytes an element, varints included
    let Some(size) = usize::try_from(length).ok().filter(|_| length <= 10 * LIMIT) else { return Ok(None) };
    let mut bytes = vec![0; size];
    let io = |source| OnnxError::Io { path: path.clone(), source };
    read_exact_at(&std::fs::File::open(path).map_err(io)?, &mut bytes, offset).map_err(io)?;
    if matches!(tensor.storage, Storage::Varints { .. }) {
        let Some(halves) = varint_halves(&bytes) else { return Ok(None) };
        bytes = halves.into_iter().flat_map(u16::to_le_bytes).collect();
    }
    Ok(decoded(&bytes, tensor.dtype).filter(|values| values.len() as u64 == tensor.elements()))
}
