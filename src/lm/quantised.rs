//! Quantised weights behind the operators that read them, as [`Quantised`] says it.
//!
//! Layouts that are not those of the operator's specification (weights that a provider has packed for itself) are
//! refused: their write is projected by nodes instead.

use super::Refusal;
use crate::onnx::ops::{Operator, WeightLayout};
use crate::onnx::quant::{Blocks, Coding, Zeros};
use crate::onnx::{DataType, Graph, NodeId, Quantised, Storage, TensorId, Use, ValueId};

/// A quantised weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Found {
    /// Its codes.
    pub codes: TensorId,
    /// Where they enter the computation.
    pub entry: Use,
    /// How they are to be read.
    pub quantised: Quantised,
}

/// The weight of an operator, or why it cannot be edited.
type Answer = Result<Found, String>;

/// A constant input of a node.
struct Constant {
    value: ValueId,
    tensor: TensorId,
    shape: Vec<u64>,
    dtype: DataType,
}

/// Input `slot` as a tensor of the file, through operators that only change its shape.
fn constant(graph: &Graph<'_>, node: NodeId, slot: usize) -> Option<Constant> {
    let mut value = graph.input(node, slot)?;
    let given = value;
    while graph.tensor(value).is_none() {
        let producer = graph.producer(value).filter(|_| !graph.is_dynamic(value))?;
        if !matches!(graph.op(producer), "Identity" | "Reshape" | "Squeeze" | "Unsqueeze" | "Flatten") {
            return None;
        }
        value = graph.input(producer, 0)?;
    }
    let tensor = graph.tensor(value)?;
    let found = graph.model.tensor(tensor);
    Some(Constant { value: given, tensor, shape: found.shape.clone(), dtype: found.dtype })
}

impl Constant {
    fn elements(&self) -> u64 {
        self.shape.iter().fold(1, |all: u64, &n| all.saturating_mul(n))
    }
}

/// Input `slot`, if it is given at all.
fn optional(graph: &Graph<'_>, node: NodeId, slot: usize) -> Result<Option<Constant>, String> {
    match graph.input(node, slot) {
        None => Ok(None),
        Some(_) => constant(graph, node, slot).map(Some).ok_or_else(|| format!("input {slot} is no constant")),
    }
}

fn required(graph: &Graph<'_>, node: NodeId, slot: usize, what: &str) -> Result<Constant, String> {
    constant(graph, node, slot).ok_or_else(|| format!("its {what} are no constant of the file"))
}

/// The geometry that most operators share, for a struct update: `[N, K]` of unsigned codes, low bits first, rows without
/// padding and of one block each, `d_model` outputs, its own scales and no zero points but the middle.
fn product(operator: &Operator, bits: u64, [rows, columns]: [u64; 2], scales: &Constant) -> Quantised {
    Quantised {
        operator: operator.name,
        layout: operator.weighted.map_or(WeightLayout::Floats, |weighted| weighted.layout),
        bits: bits as u8,
        coding: Coding::Unsigned,
        high_first: false,
        slabs: 1,
        rows,
        columns,
        row_bytes: columns * bits / 8,
        d_model_first: true,
        blocks: Blocks::Grid { rows: 1, columns },
        scales: scales.tensor,
        zeros: Zeros::Implied(1 << (bits - 1)),
        index: None,
        own_scales: true,
    }
}

/// Checks what every format needs: codes and scales where they can be read and written.
fn checked(graph: &Graph<'_>, node: NodeId, slot: usize, codes: &Constant, quantised: Quantised) -> Answer {
    let plain =
        |tensor| matches!(graph.model.tensor(tensor).storage, Storage::Embedded { .. } | Storage::External { .. });
    let q = &quantised;
    if !plain(codes.tensor) {
        return Err("its codes are stored in a form that is not read".into());
    }
    if !matches!(q.bits, 2 | 4 | 8) {
        return Err(format!("it has {} bits a code", q.bits));
    }
    if q.rows == 0 || q.columns == 0 || q.slabs == 0 {
        return Err("it is empty".into());
    }
    let stored = codes.dtype.bytes_for(codes.elements());
    if stored != Some(q.bytes()) {
        return Err(format!("its codes have {} bytes, {} are needed", stored.unwrap_or(0), q.bytes()));
    }
    let scales = graph.model.tensor(q.scales);
    if !scales.dtype.is_float() || matches!(scales.storage, Storage::Opaque) {
        return Err("its scales are stored in a form that is not read".into());
    }
    if scales.elements() != q.slabs * q.scales_a_slab() {
        return Err(format!("it has {} scales, {} are needed", scales.elements(), q.slabs * q.scales_a_slab()));
    }
    if let Zeros::Codes { tensor, .. } | Zeros::Floats(tensor) = q.zeros
        && matches!(graph.model.tensor(tensor).storage, Storage::Opaque)
    {
        return Err("its zero points are stored in a form that is not read".into());
    }
    let own_scales = plain(q.scales);
    let quantised = Quantised { own_scales, ..quantised };
    Ok(Found { codes: codes.tensor, entry: Use { node, slot }, quantised })
}

/// No attribute counts more than this, so that no product of three of them overflows.
const MOST: u64 = 1 << 21;

/// An attribute that counts something.
fn positive(graph: &Graph<'_>, node: NodeId, name: &str, default: i64) -> Result<u64, String> {
    let value = graph.node(node).attr_i(name, default);
    let counted = u64::try_from(value).ok().filter(|count| *count <= MOST);
    counted.ok_or_else(|| format!("its attribute `{name}` is {value}"))
}

/// Zero points in bytes of their own, each row of blocks padded to a whole byte, or one float a block (HQQ).
fn packed_zeros(zeros: Option<Constant>, bits: u64, rows: u64, blocks: u64) -> Result<Zeros, String> {
    match zeros {
        None => Ok(Zeros::Implied(1 << (bits - 1))),
        Some(zeros) if zeros.dtype == DataType::UINT8 && zeros.elements() == rows * (blocks * bits).div_ceil(8) => {
            Ok(Zeros::Codes { tensor: zeros.tensor, padded: true })
        }
        Some(zeros) if zeros.dtype.is_float() && zeros.elements() == rows * blocks => Ok(Zeros::Floats(zeros.tensor)),
        Some(zeros) => Err(format!("its zero points are {} {:?}", zeros.dtype, zeros.shape)),
    }
}

/// The weight of a node whose operator reads codes and scales; `width` is `d_model`, where it is known.
pub(super) fn read_by(graph: &Graph<'_>, node: NodeId, operator: &Operator, width: Option<u64>) -> Answer {
    match operator.weighted.map(|weighted| weighted.layout) {
        Some(WeightLayout::NBits) => n_bits(graph, node, operator),
        Some(WeightLayout::Bnb4) => bnb4(graph, node, operator),
        Some(WeightLayout::BlockTable) => block_table(graph, node, operator),
        Some(WeightLayout::Experts) => {
            let width = width.or_else(|| graph.last_dimension(graph.input(node, 0)?));
            experts(graph, node, operator, width)
        }
        Some(WeightLayout::ScaledInteger { scales, zeros }) => {
            let scales = required(graph, node, scales, "scales")?;
            integer_product(graph, node, operator, zeros, scales)
        }
        Some(WeightLayout::Floats | WeightLayout::Integer | WeightLayout::Linear | WeightLayout::AllIntegers)
        | None => Err("its operator is not known".into()),
    }
}

/// `MatMulNBits`: codes `[N, blocks, block * bits / 8]`, the product's output is `N` wide.
fn n_bits(graph: &Graph<'_>, node: NodeId, operator: &Operator) -> Answer {
    let codes = required(graph, node, 1, "codes")?;
    let scales = required(graph, node, 2, "scales")?;
    let proto = graph.node(node);
    if proto.attr_i("weight_prepacked", 0) != 0 {
        return Err("its weight is packed for one provider (`weight_prepacked`)".into());
    }
    let (k, n) = (positive(graph, node, "K", 0)?, positive(graph, node, "N", 0)?);
    let (bits, block) = (positive(graph, node, "bits", 4)?, positive(graph, node, "block_size", 0)?);
    if !matches!(bits, 2 | 4 | 8) || block == 0 || block * bits % 8 != 0 || codes.dtype != DataType::UINT8 {
        return Err(format!("its layout is not known: {bits} bits, block {block}, {} codes", codes.dtype));
    }
    let blocks = k.div_ceil(block);
    let zeros = packed_zeros(optional(graph, node, 3)?, bits, n, blocks)?;
    let index = optional(graph, node, 4)?;
    if index.as_ref().is_some_and(|i| i.dtype != DataType::INT32 || i.elements() < k) {
        return Err("its `g_idx` does not name the block of each column".into());
    }
    if index.is_some() && !matches!(zeros, Zeros::Implied(_)) {
        return Err("runtimes differ in what zero points mean beside `g_idx`".into());
    }
    let quantised = Quantised {
        row_bytes: blocks * block * bits / 8,
        blocks: Blocks::Grid { rows: 1, columns: block },
        zeros,
        index: index.map(|i| i.tensor),
        ..product(operator, bits, [n, k], &scales)
    };
    checked(graph, node, 1, &codes, quantised)
}

/// `MatMulBnb4`: codes of `[N, K]` one after the other, high bits first, and `absmax` for each run of them.
fn bnb4(graph: &Graph<'_>, node: NodeId, operator: &Operator) -> Answer {
    let codes = required(graph, node, 1, "codes")?;
    let scales = required(graph, node, 2, "scales")?;
    let (k, n) = (positive(graph, node, "K", 0)?, positive(graph, node, "N", 0)?);
    let block = positive(graph, node, "block_size", 0)?;
    let coding = match graph.node(node).attr_i("quant_type", 0) {
        0 => Coding::Fp4,
        1 => Coding::Nf4,
        other => return Err(format!("its `quant_type` {other} is not known")),
    };
    if graph.node(node).attr_i("transB", 1) != 1 || k % 2 != 0 || block == 0 || codes.dtype != DataType::UINT8 {
        return Err("its layout is not known".into());
    }
    let blocks = if k % block == 0 { Blocks::Grid { rows: 1, columns: block } } else { Blocks::Flat(block) };
    let quantised = Quantised {
        coding,
        high_first: true,
        blocks,
        zeros: Zeros::Implied(0),
        ..product(operator, 4, [n, k], &scales)
    };
    checked(graph, node, 1, &codes, quantised)
}

/// `GatherBlockQuantized`: an embedding `[V, D]` with blocks along `D`.
fn block_table(graph: &Graph<'_>, node: NodeId, operator: &Operator) -> Answer {
    let codes = required(graph, node, 0, "codes")?;
    let scales = required(graph, node, 2, "scales")?;
    let proto = graph.node(node);
    let block = positive(graph, node, "block_size", 128)?;
    let [rows, width] = reshaped(graph, &codes, node, 0)?;
    if proto.attr_i("gather_axis", 0) != 0 || ![1, -1].contains(&proto.attr_i("quantize_axis", 1)) || block == 0 {
        return Err("it is not quantised along its rows".into());
    }
    let (bits, columns, coding) = match codes.dtype.0 {
        21 => (4, width, Coding::Unsigned),
        22 => (4, width, Coding::Signed),
        2 => {
            let bits = positive(graph, node, "bits", 4)?;
            if !matches!(bits, 2 | 4 | 8) {
                return Err(format!("it has {bits} bits a code"));
            }
            (bits, width * 8 / bits, Coding::Unsigned)
        }
        _ => return Err(format!("its codes are {}", codes.dtype)),
    };
    if columns * bits % 8 != 0 {
        return Err("its rows do not begin at whole bytes".into());
    }
    let zeros = optional(graph, node, 3)?;
    let blocks = columns.div_ceil(block);
    let zeros = match zeros {
        zeros if codes.dtype == DataType::UINT8 => packed_zeros(zeros, bits, rows, blocks)?,
        None => Zeros::Implied(if coding == Coding::Signed { 1 << (bits - 1) } else { 0 }),
        Some(zeros) if zeros.dtype == codes.dtype && zeros.elements() == rows * blocks => {
            Zeros::Codes { tensor: zeros.tensor, padded: false }
        }
        Some(zeros) => return Err(format!("its zero points are {} {:?}", zeros.dtype, zeros.shape)),
    };
    let quantised = Quantised {
        coding,
        d_model_first: false,
        blocks: Blocks::Grid { rows: 1, columns: block },
        zeros,
        ..product(operator, bits, [rows, columns], &scales)
    };
    checked(graph, node, 0, &codes, quantised)
}

/// The two dimensions that a constant has where the node reads it.
fn reshaped(graph: &Graph<'_>, codes: &Constant, node: NodeId, slot: usize) -> Result<[u64; 2], String> {
    let value = graph.input(node, slot).expect("it was found as a constant");
    if graph.tensor(value).is_none()
        && let Some(reshape) = graph.producer(value).filter(|&n| graph.op(n) == "Reshape")
        && let Some(shape) = graph.input(reshape, 1).and_then(|v| graph.const_ints(v))
        && let [rows, width] = shape.as_slice()
        && let (Ok(rows), Ok(width)) = (u64::try_from(*rows), u64::try_from(*width))
        && rows.checked_mul(width) == Some(codes.elements())
    {
        return Ok([rows, width]);
    }
    <[u64; 2]>::try_from(codes.shape.as_slice()).map_err(|_| format!("its codes have the shape {:?}", codes.shape))
}

/// `DequantizeLinear` of a constant matrix; `d_model` is its axis `from_end`, counted from the last one.
pub(super) fn dequantize_linear(graph: &Graph<'_>, node: NodeId, from_end: usize) -> Answer {
    let operator = graph.operator(node).ok_or("its operator is not known")?;
    let codes = required(graph, node, 0, "codes")?;
    let scales = required(graph, node, 1, "scales")?;
    linear(graph, Use { node, slot: 0 }, &codes, Linear { operator, scales, zeros: 2 }, from_end)
}

/// `DequantizeLinear` behind a lookup in a constant table `[V, D]`, by one scale for all.
pub(super) fn dequantized_lookup(graph: &Graph<'_>, node: NodeId, lookup: NodeId) -> Answer {
    let operator = graph.operator(node).ok_or("its operator is not known")?;
    let codes = required(graph, lookup, 0, "codes")?;
    let scales = required(graph, node, 1, "scales")?;
    if scales.elements() != 1 || graph.node(lookup).attr_i("axis", 0) != 0 {
        return Err("the table is not looked up by rows of one scale".into());
    }
    let found = linear(graph, Use { node, slot: 0 }, &codes, Linear { operator, scales, zeros: 2 }, 0)?;
    Ok(Found { entry: Use { node: lookup, slot: 0 }, ..found })
}

/// Scales and zero points as the ONNX specification has them for `DequantizeLinear`.
struct Linear<'a> {
    /// The operator that reads the codes.
    operator: &'a Operator,
    scales: Constant,
    /// The input that holds the zero points.
    zeros: usize,
}

/// A matrix of codes that enters at `entry`; `d_model` is its axis `from_end`, counted from the last one.
fn linear(graph: &Graph<'_>, entry: Use, codes: &Constant, form: Linear<'_>, from_end: usize) -> Answer {
    let Use { node, slot } = entry;
    let &[rows, columns] = codes.shape.as_slice() else { return Err(format!("it has the shape {:?}", codes.shape)) };
    let (bits, coding) = match codes.dtype.0 {
        2 => (8u64, Coding::Unsigned),
        3 => (8, Coding::Signed),
        21 => (4, Coding::Unsigned),
        22 => (4, Coding::Signed),
        25 => (2, Coding::Unsigned),
        26 => (2, Coding::Signed),
        _ => return Err(format!("its codes are {}", codes.dtype)),
    };
    if columns * bits % 8 != 0 {
        return Err("its rows do not begin at whole bytes".into());
    }
    let proto = graph.node(node);
    let axis = proto.attr_i("axis", 1);
    let first = axis == 0 || axis == -2;
    let along_rows = form.operator.weighted.is_some_and(|weighted| weighted.layout == WeightLayout::Linear) && first;
    let blocks = match (form.scales.elements(), proto.attr_i("block_size", 0)) {
        (1, _) => Blocks::Grid { rows, columns },
        (_, 0) if along_rows => Blocks::Grid { rows: 1, columns },
        (_, 0) => Blocks::Grid { rows, columns: 1 },
        (_, block) => {
            let block = u64::try_from(block).map_err(|_| "its block is negative".to_string())?;
            if first { Blocks::Grid { rows: block, columns: 1 } } else { Blocks::Grid { rows: 1, columns: block } }
        }
    };
    let ordinal = |code: u8| u16::from(if coding == Coding::Signed { code ^ (1 << (bits - 1)) } else { code });
    let zeros = match optional(graph, node, form.zeros)? {
        None => Zeros::Implied(ordinal(0)),
        Some(zeros) if zeros.dtype != codes.dtype => return Err(format!("its zero points are {}", zeros.dtype)),
        Some(zeros) if zeros.elements() == form.scales.elements() => {
            Zeros::Codes { tensor: zeros.tensor, padded: false }
        }
        Some(zeros) if zeros.elements() == 1 => Zeros::Implied(ordinal(
            single_code(graph, zeros.value).ok_or("its zero point is stored in a form that is not read")?,
        )),
        Some(zeros) => return Err(format!("its zero points have the shape {:?}", zeros.shape)),
    };
    let quantised = Quantised {
        coding,
        d_model_first: from_end == 1,
        blocks,
        zeros,
        ..product(form.operator, bits, [rows, columns], &form.scales)
    };
    checked(graph, node, slot, codes, quantised)
}

/// The only element of a small integer tensor, as its lowest byte.
fn single_code(graph: &Graph<'_>, value: ValueId) -> Option<u8> {
    let tensor = graph.small_tensor(value)?;
    match (&tensor.raw_data, tensor.int32_data.as_slice()) {
        (Some(raw), []) => raw.first().copied(),
        (_, [one]) => Some(*one as u8),
        _ => None,
    }
}

/// `MatMulInteger` and the multiplication with its scales: `Cast(MatMulInteger(a, B)) * (a_scale * b_scale)`. `node` is
/// the multiplication. `None` if it is none of this kind.
pub(super) fn scaled_integer_product(graph: &Graph<'_>, node: NodeId) -> Option<Answer> {
    if graph.op(node) != "Mul" {
        return None;
    }
    let product = |slot: usize| {
        let mut producer = graph.producer(graph.input(node, slot)?)?;
        if graph.op(producer) == "Cast" {
            producer = graph.producer(graph.input(producer, 0)?)?;
        }
        (graph.op(producer) == "MatMulInteger").then_some(producer)
    };
    let (slot, product) = (0..2).find_map(|slot| Some((slot, product(slot)?)))?;
    let scale = graph.input(node, 1 - slot)?;
    let found = || {
        let factor = graph.producer(scale).filter(|&n| graph.op(n) == "Mul");
        let factor = factor.ok_or("its scale is not the product of two scales")?;
        let held = (0..2).find(|&s| graph.input(factor, s).is_some_and(|v| !graph.is_dynamic(v)));
        let held = held.ok_or("its scale is no constant of the file")?;
        let other = graph.input(factor, 1 - held).ok_or("its scale is not the product of two scales")?;
        if !super::rows::is_row_factor(graph, other, 0) && !is_dynamic_scale(graph, other) {
            return Err("the activation's scale is not one number".to_string());
        }
        let scales = required(graph, factor, held, "scales")?;
        let operator = graph.operator(product).ok_or("its operator is not known")?;
        integer_product(graph, product, operator, 3, scales)
    };
    Some(found())
}

/// The scale that `DynamicQuantizeLinear` returns: one number.
fn is_dynamic_scale(graph: &Graph<'_>, value: ValueId) -> bool {
    graph.producer(value).is_some_and(|n| graph.op(n) == "DynamicQuantizeLinear" && graph.output(n, 1) == Some(value))
}

/// An 8-bit matrix `[K, N]` in input 1 with one scale for all or one for each of its `N` columns; the zero points are in
/// the input `zeros`.
fn integer_product(graph: &Graph<'_>, node: NodeId, operator: &Operator, zeros: usize, scales: Constant) -> Answer {
    let codes = required(graph, node, 1, "codes")?;
    if !matches!(codes.dtype, DataType::INT8 | DataType::UINT8) {
        return Err(format!("its codes are {}", codes.dtype));
    }
    linear(graph, Use { node, slot: 1 }, &codes, Linear { operator, scales, zeros }, 0)
}

/// A `QMoE` whose codes have other rows than its scales, as CUDA's own packing has them. ONNX Runtime's CPU provider (1.32)
/// takes such a node, reads beyond the scales, gives other logits and may crash.
pub(super) fn packed_for_cuda(graph: &Graph<'_>) -> Option<Refusal> {
    let is_packed = |node: NodeId| {
        let shape = |slot| Some(&graph.tensor_ref(graph.input(node, slot)?)?.shape);
        let rows = |slot| shape(slot)?.get(1).copied();
        [(2, 3), (5, 6)].into_iter().any(|(codes, scales)| rows(codes).zip(rows(scales)).is_some_and(|(c, s)| c != s))
    };
    let experts = |node: &NodeId| graph.weighted(*node).is_some_and(|of| of.layout == WeightLayout::Experts);
    let node = graph.nodes().filter(experts).find(|node| is_packed(*node))?;
    let reason = "its weights are packed for CUDA: ONNX Runtime on the CPU reads beyond their scales";
    let hint =
        "`bake` edits it all the same; to measure it, run it with `--device cuda`, or export it for the CPU".into();
    Some(Refusal { hint, ..Refusal::on_stream(graph, node, graph.output(node, 0), reason) })
}

/// The second layer of `QMoE`: codes `[experts, d_model, d_mlp * bits / 8]` (input 5), scales input 6, zero points
/// input 12. `width` is `d_model`.
fn experts(graph: &Graph<'_>, node: NodeId, operator: &Operator, width: Option<u64>) -> Answer {
    let codes = required(graph, node, 5, "codes")?;
    let scales = required(graph, node, 6, "scales")?;
    let proto = graph.node(node);
    let kind = proto.attr("quant_type").and_then(|a| a.s.clone());
    if kind.is_some_and(|kind| kind != b"int") {
        return Err("its codes are no integers (`quant_type`)".into());
    }
    let own = proto.attr_i("expert_weight_bits", 4);
    let bits = u64::try_from(proto.attr_i("fc2_expert_weight_bits", own)).unwrap_or(0);
    let &[slabs, rows, packed] = codes.shape.as_slice() else {
        return Err(format!("its codes have the shape {:?}", codes.shape));
    };
    if !matches!(bits, 4 | 8) || codes.dtype != DataType::UINT8 {
        return Err(format!("it has {bits} bits a code in {}", codes.dtype));
    }
    if [slabs, rows, packed].iter().any(|&n| n == 0 || n > MOST) {
        return Err(format!("its codes have the shape {:?}", codes.shape));
    }
    let columns = packed * 8 / bits;
    // CUDA's own packing has the two axes the other way round
    match proto.attr_i("weights_prepacked", -1) {
        0 if width.is_none_or(|w| w == rows) => {}
        -1 if width == Some(rows) && columns != rows => {}
        _ => return Err("its weights are packed for one provider, or may be (`weights_prepacked`)".into()),
    }
    let block = positive(graph, node, "block_size", 0)?;
    let block = if block == 0 || scales.elements() == slabs * rows { columns } else { block };
    let blocks = columns.div_ceil(block);
    let zeros = match optional(graph, node, 12)? {
        Some(zeros) if blocks == 1 && zeros.elements() == slabs * (rows * bits).div_ceil(8) && rows * bits % 8 == 0 => {
            Zeros::Codes { tensor: zeros.tensor, padded: false }
        }
        zeros => packed_zeros(zeros, bits, slabs * rows, blocks)?,
    };
    let quantised = Quantised {
        slabs,
        blocks: Blocks::Grid { rows: 1, columns: block },
        zeros,
        ..product(operator, bits, [rows, columns], &scales)
    };
    checked(graph, node, 5, &codes, quantised)
}
