//! Values of small constants: shapes and axes, what a bias or a mask is filled with, norm scales and what little
//! arithmetic exporters leave on them.

use half::{bf16, f16};

use super::error::OnnxError;
use super::external::read_exact_at;
use super::graph::{Graph, ValueId, varint_halves};
use super::ops::{Elements, Rule};
use super::proto::{NodeProto, TensorProto};
use super::tensor::{DataType, Storage};

/// Constants with more elements than this are not read: they are weights, not the scale of a norm.
const LIMIT: u64 = 1 << 20;

/// Number of values that are followed back before a constant counts as unknown. Exporters leave a handful.
const STEPS: usize = 64;

/// The elements of a tensor whose payload the skeleton holds whole, whichever field they are in: `raw_data`,
/// `float_data`, `double_data`, `int32_data` (which holds 8- and 16-bit types and `bool` too, 16-bit floats by their
/// bits), `int64_data`, `uint64_data`. `None` for other types, for data elsewhere and where the number of elements is
/// wrong.
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
/// multiplied with others. `None` where it is something else.
///
/// # Errors
/// If a file that holds its elements cannot be read.
pub fn vector(graph: &Graph<'_>, value: ValueId) -> Result<Option<Vec<f64>>, OnnxError> {
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
    read_exact_at(&crate::files::open(path).map_err(io)?, &mut bytes, offset).map_err(io)?;
    if matches!(tensor.storage, Storage::Varints { .. }) {
        let Some(halves) = varint_halves(&bytes) else { return Ok(None) };
        bytes = halves.into_iter().flat_map(u16::to_le_bytes).collect();
    }
    Ok(decoded(&bytes, tensor.dtype).filter(|values| values.len() as u64 == tensor.elements()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::onnx::proto::{AttributeProto, attr_int, node};
    use crate::onnx::testing::{attribute, floats, int64s, model, open, open_in};

    fn empty(code: i32, dims: &[i64]) -> TensorProto {
        TensorProto { data_type: Some(code), dims: dims.to_vec(), ..Default::default() }
    }

    /// Two elements of each type, in each field that may hold them.
    #[test]
    fn numbers_are_read_from_every_field() {
        for (code, int32, raw, wanted) in [
            (10, vec![0x3c00, 0x0000], vec![0x00, 0x3c, 0, 0], [1.0, 0.0]),
            (16, vec![0x3f80, 0x4000], vec![0x80, 0x3f, 0, 0x40], [1.0, 2.0]),
            (9, vec![1, 0], vec![1, 0], [1.0, 0.0]),
            (3, vec![-1, 2], vec![255, 2], [-1.0, 2.0]),
            (2, vec![255, 2], vec![255, 2], [255.0, 2.0]),
            (5, vec![-1, 2], vec![255, 255, 2, 0], [-1.0, 2.0]),
            (6, vec![-1, 2], vec![255, 255, 255, 255, 2, 0, 0, 0], [-1.0, 2.0]),
        ] {
            let listed = TensorProto { int32_data: int32, ..empty(code, &[2]) };
            let packed = TensorProto { raw_data: Some(raw), ..empty(code, &[2]) };
            assert_eq!(numbers(&listed).unwrap(), wanted, "type {code}");
            assert_eq!(numbers(&packed).unwrap(), wanted, "type {code}");
        }
        for tensor in [
            TensorProto { float_data: vec![1.0, 2.0], ..empty(1, &[2]) },
            TensorProto { double_data: vec![1.0, 2.0], ..empty(11, &[2]) },
            TensorProto { int64_data: vec![1, 2], ..empty(7, &[2]) },
            TensorProto { uint64_data: vec![1, 2], ..empty(13, &[2]) },
            TensorProto { uint64_data: vec![1, 2], ..empty(12, &[2]) },
        ] {
            assert_eq!(numbers(&tensor).unwrap(), [1.0, 2.0], "{tensor:?}");
        }
        for tensor in [
            TensorProto { float_data: vec![1.0], ..empty(1, &[2]) },
            TensorProto { raw_data: Some(vec![0; 7]), ..empty(1, &[2]) },
            TensorProto { data_location: Some(1), ..empty(1, &[0]) },
            empty(8, &[0]),
        ] {
            assert_eq!(numbers(&tensor), None, "{tensor:?}");
        }
    }

    /// What `y`, made by the nodes, is everywhere.
    fn fill(nodes: Vec<crate::onnx::proto::NodeProto>) -> Option<f64> {
        let mut model = model(17, nodes, &["x"], &["y"]);
        let graph = model.graph.as_mut().unwrap();
        graph.initializer = vec![int64s("shape", &[2, 3]), floats("ones", &[4]), int64s("mixed", &[0, 1])];
        let opened = open(&model).unwrap();
        let graph = Graph::new(&opened);
        uniform(&graph, graph.value("y").unwrap())
    }

    #[test]
    fn what_a_value_is_filled_with() {
        let filled = |tensor: Option<TensorProto>| {
            let value = tensor.map(|t| attribute("value", |a: &mut AttributeProto| a.t = Some(t)));
            node("ConstantOfShape", "c", &["shape"], &["y"], value.into_iter().collect())
        };
        let moved = |op: &str, input: &str| vec![node(op, "m", &[input, "shape"], &["y"], vec![])];
        let mut custom = node("Constant", "c", &[], &["y"], vec![attribute("value_float", |a| a.f = Some(0.0))]);
        assert_eq!(fill(vec![custom.clone()]), Some(0.0));
        custom.domain = Some("com.example".into());
        assert_eq!(fill(vec![custom]), None, "a namesake of another domain");
        assert_eq!(fill(vec![filled(None)]), Some(0.0));
        for tensor in [
            TensorProto { float_data: vec![1.0], ..empty(1, &[1]) },
            TensorProto { double_data: vec![1.0], ..empty(11, &[1]) },
            TensorProto { int64_data: vec![1], ..empty(7, &[1]) },
            TensorProto { uint64_data: vec![1], ..empty(13, &[1]) },
            TensorProto { int32_data: vec![0x3c00], ..empty(10, &[1]) },
            TensorProto { raw_data: Some(1f64.to_le_bytes().to_vec()), ..empty(11, &[1]) },
        ] {
            assert_eq!(fill(vec![filled(Some(tensor.clone()))]), Some(1.0), "{tensor:?}");
        }
        assert_eq!(fill(moved("Expand", "ones")), Some(1.0));
        assert_eq!(fill(moved("Reshape", "mixed")), None);
        assert_eq!(fill(moved("Reshape", "x")), None);
        assert_eq!(fill(vec![node("Neg", "n", &["ones"], &["y"], vec![])]), None);
        let cast = |input: &str| vec![node("Cast", "c", &[input], &["y"], vec![attr_int("to", 10)])];
        assert_eq!(fill(cast("ones")), Some(1.0));
    }

    #[test]
    fn sums_that_double_end_early() {
        let mut nodes = Vec::new();
        for step in 0..40 {
            let from = if step == 0 { "ones".to_string() } else { format!("s{}", step - 1) };
            nodes.push(node("Add", &format!("n{step}"), &[&from, &from], &[&format!("s{step}")], vec![]));
        }
        nodes.push(node("Neg", "n", &["s39"], &["y"], vec![]));
        let mut proto = model(17, nodes, &[], &["y"]);
        proto.graph.as_mut().unwrap().initializer = vec![floats("ones", &[4])];
        let folder = tempfile::tempdir().unwrap();
        let opened = open_in(folder.path(), &proto).unwrap();
        let graph = Graph::new(&opened);
        assert_eq!(vector(&graph, graph.value("s2").unwrap()).unwrap(), Some(vec![8.0; 4]));
        assert_eq!(vector(&graph, graph.value("s39").unwrap()).unwrap(), None);
    }

    #[test]
    fn a_file_that_cannot_be_read_is_an_error() {
        let mut proto = model(17, vec![node("Neg", "n", &["ones"], &["y"], vec![])], &[], &["y"]);
        proto.graph.as_mut().unwrap().initializer = vec![floats("ones", &[4])];
        let opened = open(&proto).unwrap(); // its folder is gone now
        let graph = Graph::new(&opened);
        let found = vector(&graph, graph.value("ones").unwrap());
        assert!(matches!(found, Err(OnnxError::Io { .. })), "{found:?}");
    }
}
