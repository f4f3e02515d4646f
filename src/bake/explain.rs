//! Names what differs between the model file that a bake makes and the one that is there: both are taken apart into
//! nodes, tensors, values, functions and entries, which are paired by kind and name. Runs only where bytes differ.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::File;
use std::io;
use std::ops::Range;

use prost::Message;
use prost::encoding::{WireType, decode_key, decode_varint, encode_key};
use sha2::{Digest, Sha256};

use super::findings::{Finding, FindingKind};
use super::layout::{Content, FileLayout};
use crate::onnx::DataType;
use crate::onnx::external::read_exact_at;
use crate::onnx::proto::{
    AttributeProto, FunctionProto, NodeProto, OperatorSetIdProto, StringStringEntryProto, TensorProto, ValueInfoProto,
};
use crate::onnx::wire::put_bytes;

/// Payloads of tensors up to this many bytes are compared here; larger ones through the two indices.
const SMALL: u64 = 1024;

/// Messages up to this many bytes are read whole.
const WHOLE: u64 = 4 << 20;

/// Parts of a file that are looked at.
const MOST_PARTS: usize = 2_000_000;

/// Bytes hashed at a time.
const BLOCK: u64 = 1 << 20;

/// Longest header of a field: a key and a length.
const HEADER: usize = 20;

/// Bytes by their offset in a model file.
pub(super) trait Source {
    /// Number of bytes.
    fn len(&self) -> u64;
    /// Fills `buf` from `at`.
    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()>;
    /// Whether any of these bytes are made by an edit, which a source that is not written yet does not know.
    fn made(&self, range: &Range<u64>) -> bool;
}

/// The file that is there.
pub(super) struct Written<'f> {
    pub file: &'f File,
    pub len: u64,
}

impl Source for Written<'_> {
    fn len(&self) -> u64 {
        self.len
    }

    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        read_exact_at(self.file, buf, at)
    }

    fn made(&self, _: &Range<u64>) -> bool {
        false
    }
}

/// The file that a layout makes of a base, with zeros for what edits make.
pub(super) struct Expected<'l> {
    pub layout: &'l FileLayout,
    pub base: &'l File,
}

impl Source for Expected<'_> {
    fn len(&self) -> u64 {
        self.layout.len
    }

    fn read(&self, buf: &mut [u8], at: u64) -> io::Result<()> {
        let end = at + buf.len() as u64;
        let first = self.layout.pieces.partition_point(|piece| piece.at + piece.len <= at);
        let mut filled = 0;
        for piece in &self.layout.pieces[first..] {
            if piece.at >= end {
                break;
            }
            let (from, to) = (at.max(piece.at), end.min(piece.at + piece.len));
            let range = (from - at) as usize..(to - at) as usize;
            filled += range.len();
            let skip = from - piece.at;
            match &piece.content {
                Content::Copy(source) => read_exact_at(self.base, &mut buf[range], source + skip)?,
                Content::Literal(bytes) => {
                    let length = range.len();
                    buf[range].copy_from_slice(&bytes[skip as usize..skip as usize + length]);
                }
                Content::Edit { .. } | Content::Scales { .. } => buf[range].fill(0),
            }
        }
        if filled == buf.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    fn made(&self, range: &Range<u64>) -> bool {
        let first = self.layout.pieces.partition_point(|piece| piece.at + piece.len <= range.start);
        let within = self.layout.pieces[first..].iter().take_while(|piece| piece.at < range.end);
        let mut within = within;
        within.any(|piece| matches!(piece.content, Content::Edit { .. } | Content::Scales { .. }))
    }
}

/// Which message is taken apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Model,
    Graph,
    Function,
}

/// A field of a message.
struct Field {
    number: u32,
    /// The value: the body of a length-delimited one.
    value: Range<u64>,
    delimited: bool,
}

/// One part of a message.
struct Part {
    /// Bytes of its value.
    value: Range<u64>,
    /// Its hash, without a tensor's large payloads.
    hash: [u8; 32],
    /// The same without any of its payloads.
    bare: [u8; 32],
    /// Whether an edit makes some of it, so that the hash says nothing.
    made: bool,
    /// Its number among all parts.
    place: usize,
}

/// What parts are paired by: field number, kind and name.
type Key = (u32, FindingKind, String);

fn broken(at: u64) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("no protobuf field at byte {at}"))
}

fn field(source: &dyn Source, at: u64, end: u64) -> io::Result<Field> {
    let mut head = [0u8; HEADER];
    let available = (end - at).min(HEADER as u64) as usize;
    source.read(&mut head[..available], at)?;
    let mut rest = &head[..available];
    let (number, wire) = decode_key(&mut rest).map_err(|_| broken(at))?;
    let here = |rest: &[u8]| at + (available - rest.len()) as u64;
    let start = here(rest);
    let (value, delimited) = match wire {
        WireType::Varint => {
            decode_varint(&mut rest).map_err(|_| broken(at))?;
            (start..here(rest), false)
        }
        WireType::SixtyFourBit => (start..start + 8, false),
        WireType::ThirtyTwoBit => (start..start + 4, false),
        WireType::LengthDelimited => {
            let length = decode_varint(&mut rest).map_err(|_| broken(at))?;
            let start = here(rest);
            (start..start.checked_add(length).ok_or_else(|| broken(at))?, true)
        }
        WireType::StartGroup | WireType::EndGroup => return Err(broken(at)),
    };
    if value.end > end { Err(broken(at)) } else { Ok(Field { number, value, delimited }) }
}

fn fields(source: &dyn Source, range: Range<u64>, budget: &mut usize) -> io::Result<Vec<Field>> {
    let mut found = Vec::new();
    let mut at = range.start;
    while at < range.end {
        *budget = budget.checked_sub(1).ok_or_else(|| io::Error::other("it has too many parts to name one"))?;
        let field = field(source, at, range.end)?;
        at = field.value.end;
        found.push(field);
    }
    Ok(found)
}

fn bytes(source: &dyn Source, range: &Range<u64>) -> io::Result<Option<Vec<u8>>> {
    if range.end - range.start > WHOLE {
        return Ok(None);
    }
    let mut buf = vec![0u8; (range.end - range.start) as usize];
    source.read(&mut buf, range.start)?;
    Ok(Some(buf))
}

fn message<M: Message + Default>(source: &dyn Source, range: &Range<u64>) -> io::Result<Option<M>> {
    Ok(bytes(source, range)?.and_then(|bytes| M::decode(bytes.as_slice()).ok()))
}

fn hash_of(source: &dyn Source, range: &Range<u64>, hasher: &mut Sha256) -> io::Result<()> {
    let mut at = range.start;
    while at < range.end {
        let mut block = vec![0u8; (range.end - at).min(BLOCK) as usize];
        source.read(&mut block, at)?;
        hasher.update(&block);
        at += block.len() as u64;
    }
    Ok(())
}

/// A tensor without its payloads.
struct Header {
    tensor: TensorProto,
    /// Its fields, of payloads the lengths.
    bare: Vec<u8>,
    /// Its small payloads.
    payloads: Vec<u8>,
    /// Whether an edit makes its payload.
    made: bool,
}

fn header(source: &dyn Source, range: &Range<u64>, budget: &mut usize) -> io::Result<Header> {
    let (mut bare, mut payloads, mut made) = (Vec::new(), Vec::new(), false);
    let mut proto = Vec::new();
    for field in fields(source, range.clone(), budget)? {
        let length = field.value.end - field.value.start;
        let payload = field.delimited && matches!(field.number, 4 | 5 | 6 | 7 | 9 | 10 | 11);
        bare.extend(field.number.to_le_bytes());
        bare.extend(length.to_le_bytes());
        if payload {
            made |= source.made(&field.value);
            if length <= SMALL {
                payloads.extend(bytes(source, &field.value)?.unwrap_or_default());
            }
            continue;
        }
        let Some(bytes) = bytes(source, &field.value)? else { continue };
        match field.delimited {
            true => put_bytes(&mut proto, field.number, &bytes),
            false => {
                encode_key(field.number, WireType::Varint, &mut proto);
                proto.extend(&bytes);
            }
        }
        bare.extend(bytes);
    }
    Ok(Header { tensor: TensorProto::decode(proto.as_slice()).unwrap_or_default(), bare, payloads, made })
}

fn field_name(kind: Kind, number: u32) -> String {
    let known = match (kind, number) {
        (Kind::Model, 1) => "ir_version",
        (Kind::Model, 2) => "producer_name",
        (Kind::Model, 3) => "producer_version",
        (Kind::Model, 4) => "domain",
        (Kind::Model, 5) => "model_version",
        (Kind::Model, 6) | (Kind::Graph, 10) | (Kind::Function, 8) => "doc_string",
        (Kind::Model, 20) => "training_info",
        (Kind::Graph, 2) | (Kind::Function, 1) => "name",
        (Kind::Function, 4) => "input",
        (Kind::Function, 5) => "output",
        (Kind::Function, 6 | 11) => "attribute",
        (Kind::Function, 10) => "domain",
        _ => return format!("field {number}"),
    };
    known.to_string()
}

fn key(source: &dyn Source, kind: Kind, field: &Field) -> io::Result<Key> {
    let value = &field.value;
    let named = |what, name: Option<String>| (field.number, what, name.unwrap_or_default());
    let key = match (kind, field.number) {
        (Kind::Graph, 1) | (Kind::Function, 7) => {
            named(FindingKind::Node, message::<NodeProto>(source, value)?.map(|node| node.label().to_string()))
        }
        (Kind::Model, 25) => {
            let function = message::<FunctionProto>(source, value)?.unwrap_or_default();
            let domain = function.domain.filter(|d| !d.is_empty()).map(|d| format!("{d}.")).unwrap_or_default();
            named(FindingKind::Function, Some(format!("{domain}{}", function.name.unwrap_or_default())))
        }
        (Kind::Model, 14) | (Kind::Graph, 16) | (Kind::Function, 14) => {
            named(FindingKind::Metadata, message::<StringStringEntryProto>(source, value)?.and_then(|entry| entry.key))
        }
        (Kind::Model, 8) | (Kind::Function, 9) => {
            let opset = message::<OperatorSetIdProto>(source, value)?.unwrap_or_default();
            let domain = opset.domain.filter(|d| !d.is_empty()).unwrap_or_else(|| "ai.onnx".into());
            named(FindingKind::Model, Some(format!("opset import `{domain}`")))
        }
        (Kind::Graph, 11..=13) | (Kind::Function, 12) => {
            named(FindingKind::Value, message::<ValueInfoProto>(source, value)?.and_then(|value| value.name))
        }
        (Kind::Graph, 14) => named(FindingKind::Value, Some("quantization_annotation".into())),
        (Kind::Graph, 15) => named(FindingKind::Tensor, Some("sparse_initializer".into())),
        (Kind::Function, number) => named(FindingKind::Function, Some(field_name(kind, number))),
        (_, number) => named(FindingKind::Model, Some(field_name(kind, number))),
    };
    Ok(key)
}

type Parts = BTreeMap<Key, Vec<Part>>;

/// The parts of a message.
fn parts(source: &dyn Source, kind: Kind, range: Range<u64>, budget: &mut usize) -> io::Result<Parts> {
    let mut found = Parts::new();
    for (place, field) in fields(source, range, budget)?.into_iter().enumerate() {
        let mut hasher = Sha256::new();
        let mut bare = None;
        let (key, made) = if kind == Kind::Model && field.number == 7 {
            ((7, FindingKind::Model, "graph".to_string()), true)
        } else if kind == Kind::Graph && field.number == 5 && field.delimited {
            let found = header(source, &field.value, budget)?;
            hasher.update(&found.bare);
            bare = Some(hasher.clone().finalize().into());
            hasher.update(&found.payloads);
            ((5, FindingKind::Tensor, found.tensor.name.unwrap_or_default()), found.made)
        } else {
            hash_of(source, &field.value, &mut hasher)?;
            (key(source, kind, &field)?, source.made(&field.value))
        };
        let hash = hasher.finalize().into();
        // what an edit makes is compared with the edit elsewhere
        let part = Part { value: field.value, hash, bare: bare.unwrap_or([0; 32]), made, place };
        found.entry(key).or_default().push(part);
    }
    Ok(found)
}

/// What differs in a model file, as far as it can be taken apart. `known` are the keys of metadata entries that were
/// held against the plan elsewhere; tensors' larger payloads and those of edits are compared elsewhere too.
pub(super) fn explain(expected: &dyn Source, found: &dyn Source, file: &str, known: &HashSet<String>) -> Vec<Finding> {
    let mut budget = MOST_PARTS;
    let mut findings = Vec::new();
    let mut compare = Compare { expected, found, file, known, budget: &mut budget, findings: &mut findings };
    if let Err(error) = compare.messages(Kind::Model, 0..expected.len(), 0..found.len(), "") {
        compare.say(FindingKind::Model, "", "", format!("it cannot be taken apart: {error}"));
    }
    findings
}

struct Compare<'c> {
    expected: &'c dyn Source,
    found: &'c dyn Source,
    file: &'c str,
    known: &'c HashSet<String>,
    budget: &'c mut usize,
    findings: &'c mut Vec<Finding>,
}

impl Compare<'_> {
    fn say(&mut self, kind: FindingKind, name: &str, within: &str, detail: String) {
        let detail = if within.is_empty() { detail } else { format!("in the function `{within}`, {detail}") };
        self.findings.push(Finding { kind, file: self.file.into(), name: name.into(), detail });
    }

    fn messages(&mut self, kind: Kind, expected: Range<u64>, found: Range<u64>, within: &str) -> io::Result<()> {
        let before = self.findings.len();
        let wanted = parts(self.expected, kind, expected, self.budget)?;
        let there = parts(self.found, kind, found, self.budget)?;
        let none = Vec::new();
        let keys: BTreeSet<&Key> = wanted.keys().chain(there.keys()).collect();
        for key in keys {
            let (a, b) = (wanted.get(key).unwrap_or(&none), there.get(key).unwrap_or(&none));
            let (_, what, name) = key;
            if *what == FindingKind::Metadata && kind == Kind::Model && a.is_empty() && self.known.contains(name) {
                continue;
            }
            for (a, b) in a.iter().zip(b) {
                let graph = kind == Kind::Model && key.0 == 7;
                let differs = if a.made { a.bare != b.bare } else { a.hash != b.hash };
                if graph || differs {
                    self.part(kind, key, a, b, within)?;
                }
            }
            if a.len() > b.len() {
                self.say(*what, name, within, "it is missing".into());
            } else if b.len() > a.len() {
                self.say(*what, name, within, "it was added".into());
            }
        }
        if self.findings.len() == before {
            for what in [FindingKind::Node, FindingKind::Tensor, FindingKind::Value] {
                let order = |parts: &Parts| {
                    let places = parts.iter().filter(|(key, _)| key.1 == what);
                    let mut places: Vec<(usize, String)> =
                        places.flat_map(|(key, parts)| parts.iter().map(|p| (p.place, key.2.clone()))).collect();
                    places.sort_unstable();
                    places
                };
                let (a, b) = (order(&wanted), order(&there));
                if let Some((a, _)) = a.iter().zip(&b).find(|(a, b)| a.1 != b.1) {
                    self.say(what, &a.1, within, "it stands elsewhere in the file".into());
                }
            }
        }
        Ok(())
    }

    /// One part that differs.
    fn part(&mut self, kind: Kind, key: &Key, a: &Part, b: &Part, within: &str) -> io::Result<()> {
        let (number, what, name) = key;
        match (kind, number) {
            (Kind::Model, 7) => return self.messages(Kind::Graph, a.value.clone(), b.value.clone(), within),
            (Kind::Model, 25) => {
                let before = self.findings.len();
                self.messages(Kind::Function, a.value.clone(), b.value.clone(), name)?;
                if self.findings.len() == before {
                    self.say(*what, name, within, "it differs".into());
                }
                return Ok(());
            }
            _ => {}
        }
        let detail = match what {
            FindingKind::Node => self.node(a, b)?,
            FindingKind::Tensor if *number == 5 => self.tensor(a, b)?,
            FindingKind::Metadata => self.entry(a, b)?,
            FindingKind::Value => "its declaration differs".into(),
            FindingKind::Model if matches!((kind, number), (Kind::Model, 8) | (Kind::Function, 9)) => {
                let version = |opset: Option<OperatorSetIdProto>| opset.and_then(|o| o.version).unwrap_or(0);
                let (a, b) = (message(self.expected, &a.value)?, message(self.found, &b.value)?);
                format!("it is {}, and was {}", version(b), version(a))
            }
            _ => self.scalar(a, b)?,
        };
        self.say(*what, name, within, detail);
        Ok(())
    }

    fn node(&self, a: &Part, b: &Part) -> io::Result<String> {
        let (Some(a), Some(b)) =
            (message::<NodeProto>(self.expected, &a.value)?, message::<NodeProto>(self.found, &b.value)?)
        else {
            return Ok("it differs".into());
        };
        let mut different = Vec::new();
        if a.op_type != b.op_type || a.domain != b.domain {
            different.push(format!("its operator became `{}`", b.op()));
        }
        if a.input != b.input {
            different.push("its inputs differ".to_string());
        }
        if a.output != b.output {
            different.push("its outputs differ".to_string());
        }
        let name = |attribute: &AttributeProto| attribute.name.clone().unwrap_or_default();
        for attribute in &a.attribute {
            match b.attribute.iter().find(|other| other.name == attribute.name) {
                None => different.push(format!("its attribute `{}` is missing", name(attribute))),
                Some(other) if other != attribute => {
                    different.push(format!("its attribute `{}` differs", name(attribute)));
                }
                Some(_) => {}
            }
        }
        let added = b.attribute.iter().filter(|one| a.attribute.iter().all(|other| other.name != one.name));
        different.extend(added.map(|one| format!("its attribute `{}` was added", name(one))));
        Ok(if different.is_empty() { "it is coded in another way".into() } else { different.join("; ") })
    }

    fn tensor(&mut self, a: &Part, b: &Part) -> io::Result<String> {
        let a = header(self.expected, &a.value, self.budget)?;
        let b = header(self.found, &b.value, self.budget)?;
        let shown = |tensor: &TensorProto| format!("{} {:?}", DataType(tensor.data_type.unwrap_or(0)), tensor.dims);
        let place = |tensor: &TensorProto| (tensor.data_location, tensor.external_data.clone());
        Ok(if shown(&a.tensor) != shown(&b.tensor) {
            format!("it is {}, and was to be {}", shown(&b.tensor), shown(&a.tensor))
        } else if place(&a.tensor) != place(&b.tensor) {
            "its place in the external data differs".into()
        } else if a.bare == b.bare {
            "it has other bytes".into()
        } else {
            "it is stored in another way".into()
        })
    }

    fn entry(&self, a: &Part, b: &Part) -> io::Result<String> {
        let value = |entry: Option<StringStringEntryProto>| entry.and_then(|e| e.value).unwrap_or_default();
        let a = value(message(self.expected, &a.value)?);
        let b = value(message(self.found, &b.value)?);
        let short = |text: &str| text.chars().take(64).collect::<String>();
        Ok(format!("it is `{}`, and was `{}`", short(&b), short(&a)))
    }

    fn scalar(&self, a: &Part, b: &Part) -> io::Result<String> {
        let shown = |source: &dyn Source, part: &Part| -> io::Result<Option<String>> {
            let Some(bytes) = bytes(source, &part.value)?.filter(|bytes| bytes.len() <= 64) else { return Ok(None) };
            let mut rest = bytes.as_slice();
            Ok(match (std::str::from_utf8(&bytes), decode_varint(&mut rest)) {
                (Ok(text), _) if !text.is_empty() && text.chars().all(|c| !c.is_control()) => Some(text.to_string()),
                (_, Ok(number)) if rest.is_empty() => Some(number.to_string()),
                _ => None,
            })
        };
        Ok(match (shown(self.expected, a)?, shown(self.found, b)?) {
            (Some(a), Some(b)) if a != b => format!("it is `{b}`, and was `{a}`"),
            _ => "it differs".into(),
        })
    }
}
