//! Element types, and a tensor's place in the files of a model.

use std::fmt;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The largest code that has a name.
const LAST_TYPE: i32 = 26;

/// An ONNX `TensorProto.DataType`. The code is kept for types Lancet does not compute with.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct DataType(pub i32);

#[allow(missing_docs)]
impl DataType {
    pub const FLOAT: Self = Self(1);
    pub const UINT8: Self = Self(2);
    pub const INT8: Self = Self(3);
    pub const INT32: Self = Self(6);
    pub const INT64: Self = Self(7);
    pub const STRING: Self = Self(8);
    pub const BOOL: Self = Self(9);
    pub const FLOAT16: Self = Self(10);
    pub const DOUBLE: Self = Self(11);
    pub const BFLOAT16: Self = Self(16);
}

impl DataType {
    /// Bytes an element, where an element is a whole number of bytes.
    pub fn size(self) -> Option<u64> {
        Some(match self.0 {
            2 | 3 | 9 | 17..=20 => 1,
            4 | 5 | 10 | 16 => 2,
            1 | 6 | 12 => 4,
            7 | 11 | 13 | 14 => 8,
            15 => 16,
            _ => return None,
        })
    }

    /// Elements that share a byte of `raw_data`, and a value of `int32_data`: several of a 4-bit or 2-bit type, else 1
    /// (ONNX specification, `TensorProto`).
    pub fn elements_a_byte(self) -> u64 {
        match self.0 {
            21..=23 => 2,
            25 | 26 => 4,
            _ => 1,
        }
    }

    /// Bytes of `elements` elements; 4-bit and 2-bit types pack several a byte (ONNX spec, `TensorProto.raw_data`).
    pub fn bytes_for(self, elements: u64) -> Option<u64> {
        match self.elements_a_byte() {
            1 => self.size()?.checked_mul(elements),
            several => Some(elements.div_ceil(several)),
        }
    }

    /// A type whose values Lancet can edit: float32, float16, bfloat16, float64.
    pub fn is_float(self) -> bool {
        matches!(self, Self::FLOAT | Self::FLOAT16 | Self::BFLOAT16 | Self::DOUBLE)
    }

    /// The specification's name in lower case.
    pub fn name(self) -> &'static str {
        match self.0 {
            1 => "float32",
            2 => "uint8",
            3 => "int8",
            4 => "uint16",
            5 => "int16",
            6 => "int32",
            7 => "int64",
            8 => "string",
            9 => "bool",
            10 => "float16",
            11 => "float64",
            12 => "uint32",
            13 => "uint64",
            14 => "complex64",
            15 => "complex128",
            16 => "bfloat16",
            17..=20 => "float8",
            21 => "uint4",
            22 => "int4",
            23 => "float4e2m1",
            25 => "uint2",
            26 => "int2",
            _ => "unknown",
        }
    }
}

impl fmt::Display for DataType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Serialize for DataType {
    /// As the name.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for DataType {
    /// From the name: the first type that has it, and the type 0, `unknown`, where none has.
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        Ok((0..=LAST_TYPE).map(Self).find(|dtype| dtype.name() == name).unwrap_or_default())
    }
}

#[cfg(test)]
impl schemars::JsonSchema for DataType {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "DataType".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        String::json_schema(generator)
    }
}

/// A tensor's number in a model's index ([`crate::onnx::Model::tensors`]).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TensorId(pub usize);

/// Where a tensor's elements are stored.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Storage {
    /// Little-endian elements at this byte range of the `.onnx` file: `raw_data`, or packed
    /// `float_data` / `double_data`, whose payload has the same layout.
    Embedded {
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Elements in another file.
    External {
        /// The path as written in the model, relative to the model's folder.
        location: String,
        /// The file, checked to lie in the model's folder.
        path: PathBuf,
        /// First byte.
        offset: u64,
        /// Number of bytes.
        length: u64,
    },
    /// Packed protobuf varints in the `.onnx` file (`int32_data` of 16-bit floats and small integers,
    /// `int64_data`, `uint64_data`): one field, `payload` without its length prefix.
    Varints {
        /// First byte of the payload.
        offset: u64,
        /// Number of bytes of the payload.
        length: u64,
    },
    /// No elements, or a form nothing here needs to read (strings, values split over several fields).
    Opaque,
}

/// One tensor of a model: an initializer, or a tensor attribute (a `Constant` node).
#[derive(Debug, Clone)]
pub struct TensorRef {
    /// The tensor's own name; empty for many attributes.
    pub name: String,
    /// Element type.
    pub dtype: DataType,
    /// Dimensions; empty for a scalar.
    pub shape: Vec<u64>,
    /// Where the elements are.
    pub storage: Storage,
    /// The frame of the `TensorProto` message in the `.onnx` file.
    pub frame: super::index::FrameId,
}

impl TensorRef {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().product()
    }
}
