//! A mutator that knows protobuf's wire format: it changes one field of one message at any depth and mends the lengths
//! around it, so that most mutants still parse and reach what comes after parsing.

use prost::encoding::{WireType, decode_key, decode_varint, encode_key, encode_varint};

/// A small deterministic generator (xorshift), seeded by libFuzzer.
pub struct Random(u64);

impl Random {
    /// From a seed.
    pub fn new(seed: u32) -> Self {
        Self(u64::from(seed) | 1 << 32)
    }

    /// Below `n`, which is at least 1.
    pub fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n.max(1) as u64) as usize
    }
}

/// One field of a message.
#[derive(Clone)]
struct Field {
    tag: u32,
    body: Body,
}

#[derive(Clone)]
enum Body {
    Varint(u64),
    Fixed(WireType, Vec<u8>),
    Bytes(Vec<u8>),
}

/// The fields of a message, if `bytes` are one.
fn parse(mut bytes: &[u8]) -> Option<Vec<Field>> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (tag, wire) = decode_key(&mut bytes).ok()?;
        let mut take = |n: usize| {
            let (head, rest) = bytes.split_at_checked(n)?;
            bytes = rest;
            Some(head.to_vec())
        };
        let body = match wire {
            WireType::Varint => Body::Varint(decode_varint(&mut bytes).ok()?),
            WireType::SixtyFourBit => Body::Fixed(wire, take(8)?),
            WireType::ThirtyTwoBit => Body::Fixed(wire, take(4)?),
            WireType::LengthDelimited => {
                let length = usize::try_from(decode_varint(&mut bytes).ok()?).ok()?;
                let (head, rest) = bytes.split_at_checked(length)?;
                bytes = rest;
                Body::Bytes(head.to_vec())
            }
            _ => return None,
        };
        fields.push(Field { tag, body });
    }
    Some(fields)
}

fn build(fields: &[Field]) -> Vec<u8> {
    let mut out = Vec::new();
    for Field { tag, body } in fields {
        match body {
            Body::Varint(value) => {
                encode_key(*tag, WireType::Varint, &mut out);
                encode_varint(*value, &mut out);
            }
            Body::Fixed(wire, bytes) => {
                encode_key(*tag, *wire, &mut out);
                out.extend_from_slice(bytes);
            }
            Body::Bytes(bytes) => {
                encode_key(*tag, WireType::LengthDelimited, &mut out);
                encode_varint(bytes.len() as u64, &mut out);
                out.extend_from_slice(bytes);
            }
        }
    }
    out
}

const NUMBERS: [u64; 16] =
    [0, 1, 2, 3, 4, 7, 8, 16, 127, 1 << 16, 1 << 31, (1 << 32) - 1, 1 << 40, i64::MAX as u64, 1 << 63, u64::MAX];

/// Words that mean something in a model file.
const WORDS: [&str; 64] = [
    "Add",
    "Mul",
    "MatMul",
    "Gemm",
    "Gather",
    "Cast",
    "CastLike",
    "Reshape",
    "Transpose",
    "Identity",
    "If",
    "Loop",
    "Scan",
    "Constant",
    "ConstantOfShape",
    "OneHot",
    "ReduceSum",
    "ReduceMean",
    "Sum",
    "Sub",
    "Concat",
    "Split",
    "Slice",
    "Squeeze",
    "Unsqueeze",
    "Shape",
    "Expand",
    "Where",
    "Pow",
    "Sqrt",
    "Div",
    "Softmax",
    "RMSNormalization",
    "LayerNormalization",
    "SkipSimplifiedLayerNormalization",
    "SkipLayerNormalization",
    "MatMulNBits",
    "QMoE",
    "MoE",
    "GatherBlockQuantized",
    "DequantizeLinear",
    "QuantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "MatMulIntegerToFloat",
    "QLinearMatMul",
    "MatMulBnb4",
    "FusedMatMul",
    "GroupQueryAttention",
    "EPContext",
    "Conv",
    "com.microsoft",
    "ai.onnx",
    "pkg.onnxscript",
    "location",
    "offset",
    "length",
    "checksum",
    "",
    "logits",
    "input_ids",
    "embed",
    "x",
    "lancet.tensor",
];

/// Changes `bytes` once, at a depth that chance decides. Texts of the whole file are worth copying from place to place.
fn change(bytes: &[u8], random: &mut Random, depth: usize) -> Vec<u8> {
    let Some(mut fields) = parse(bytes).filter(|fields| !fields.is_empty()) else {
        return plain(bytes, random);
    };
    let at = random.below(fields.len());
    // mostly go down, so that what is large is not changed at its top alone
    if let Body::Bytes(inner) = &fields[at].body
        && depth < 12
        && !inner.is_empty()
        && random.below(5) > 0
    {
        fields[at].body = Body::Bytes(change(inner, random, depth + 1));
        return build(&fields);
    }
    let other = random.below(fields.len());
    match random.below(9) {
        0 => drop(fields.remove(at)),
        1 => {
            let copy = fields[at].clone();
            fields.insert(other, copy);
        }
        2 => fields.swap(at, other),
        3 => {
            let body = fields[other].body.clone();
            fields[at].body = body;
        }
        4 => fields[at].tag = fields[other].tag,
        5 => fields[at].tag = 1 + random.below(24) as u32,
        6 => {
            for _ in 0..random.below(6) {
                let copy = fields[at].clone();
                fields.insert(at, copy);
            }
        }
        _ => {
            fields[at].body = match &fields[at].body {
                Body::Varint(value) => Body::Varint(match random.below(3) {
                    0 => value.wrapping_add(1),
                    1 => value.wrapping_sub(1),
                    _ => NUMBERS[random.below(NUMBERS.len())],
                }),
                Body::Fixed(wire, bytes) => Body::Fixed(*wire, plain_same(bytes, random)),
                Body::Bytes(bytes) => Body::Bytes(plain(bytes, random)),
            };
        }
    }
    build(&fields)
}

fn plain_same(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    let at = random.below(bytes.len());
    bytes[at] ^= 1 << random.below(8);
    bytes
}

/// Changes bytes that are no message: a word, a few bytes, or a packed number.
fn plain(bytes: &[u8], random: &mut Random) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    match random.below(6) {
        0 | 1 => return WORDS[random.below(WORDS.len())].as_bytes().to_vec(),
        2 => bytes.truncate(random.below(bytes.len() + 1)),
        3 => encode_varint(NUMBERS[random.below(NUMBERS.len())], &mut bytes),
        _ if bytes.is_empty() => bytes.push(random.below(256) as u8),
        _ => return plain_same(&bytes, random),
    }
    bytes
}

/// Another name that occurs in the same file, put in the place of one: edges of the graph move.
fn rewire(bytes: &[u8], random: &mut Random) -> Option<Vec<u8>> {
    let mut model = parse(bytes)?;
    let graph = model.iter_mut().find(|field| field.tag == 7)?;
    let Body::Bytes(inner) = &graph.body else { return None };
    let mut fields = parse(inner)?;
    let nodes: Vec<usize> = (0..fields.len()).filter(|i| fields[*i].tag == 1).collect();
    let pick = |random: &mut Random| nodes.get(random.below(nodes.len())).copied();
    let (from, to) = (pick(random)?, pick(random)?);
    let read = |field: &Field| match &field.body {
        Body::Bytes(bytes) => parse(bytes),
        _ => None,
    };
    let names: Vec<Field> = read(&fields[from])?.into_iter().filter(|f| f.tag <= 2).collect();
    let mut node = read(&fields[to])?;
    let slots: Vec<usize> = (0..node.len()).filter(|i| node[*i].tag <= 2).collect();
    let slot = *slots.get(random.below(slots.len()))?;
    node[slot].body = names.get(random.below(names.len()))?.body.clone();
    fields[to].body = Body::Bytes(build(&node));
    graph.body = Body::Bytes(build(&fields));
    Some(build(&model))
}

/// Mutates `data[..size]` in place; the new size is at most `max_size`.
pub fn mutate(data: &mut [u8], size: usize, max_size: usize, seed: u32) -> usize {
    let mut random = Random::new(seed);
    if random.below(20) == 0 {
        return libfuzzer_sys::fuzzer_mutate(data, size, max_size);
    }
    let mut bytes = data[..size].to_vec();
    for _ in 0..1 + random.below(3) {
        let changed = match random.below(3) {
            0 => rewire(&bytes, &mut random),
            _ => None,
        };
        bytes = changed.unwrap_or_else(|| change(&bytes, &mut random, 0));
    }
    let size = bytes.len().min(max_size).min(data.len());
    data[..size].copy_from_slice(&bytes[..size]);
    size
}
