//! Small models for the tests of the file layer.

use prost::Message;

use super::error::OnnxError;
use super::index::Model;
use super::proto::{
    AttributeProto, Dimension, GraphProto, ModelProto, NodeProto, OperatorSetIdProto, TensorProto, TensorShapeProto,
    TypeProto, ValueInfoProto, dimension, type_proto,
};

/// Writes a model to a file and opens it.
pub fn open(model: &ModelProto) -> Result<Model, OnnxError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("m.onnx");
    std::fs::write(&path, model.encode_to_vec()).unwrap();
    Model::open(&path)
}

/// A model of IR version 8 with ONNX Runtime's operators; inputs and outputs have no declared type.
pub fn model(opset: i64, nodes: Vec<NodeProto>, inputs: &[&str], outputs: &[&str]) -> ModelProto {
    let untyped = |name: &&str| ValueInfoProto { name: Some((*name).into()), r#type: None };
    let import = |domain: &str, version| OperatorSetIdProto { domain: Some(domain.into()), version: Some(version) };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![import("", opset), import("com.microsoft", 1), import("com.example", 1)],
        graph: Some(GraphProto {
            node: nodes,
            input: inputs.iter().map(untyped).collect(),
            output: outputs.iter().map(untyped).collect(),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// A float32 input with these dimensions, `None` for symbolic ones.
pub fn input(name: &str, dims: &[Option<i64>]) -> ValueInfoProto {
    typed(name, 1, dims)
}

/// The same of another element type.
pub fn typed(name: &str, code: i32, dims: &[Option<i64>]) -> ValueInfoProto {
    let dim = dims.iter().map(|d| Dimension { value: d.map(dimension::Value::DimValue) }).collect();
    let tensor = type_proto::Tensor { elem_type: Some(code), shape: Some(TensorShapeProto { dim }) };
    let r#type = TypeProto { value: Some(type_proto::Value::TensorType(tensor)), denotation: None };
    ValueInfoProto { name: Some(name.into()), r#type: Some(r#type) }
}

/// A float32 tensor of ones.
pub fn floats(name: &str, dims: &[i64]) -> TensorProto {
    let count = usize::try_from(dims.iter().product::<i64>()).unwrap();
    TensorProto {
        name: Some(name.into()),
        dims: dims.to_vec(),
        data_type: Some(1),
        float_data: vec![1.0; count],
        ..Default::default()
    }
}

/// An int64 vector.
pub fn int64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.into()),
        dims: vec![values.len() as i64],
        data_type: Some(7),
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// An attribute that `set` fills.
pub fn attribute(name: &str, set: impl FnOnce(&mut AttributeProto)) -> AttributeProto {
    let mut made = AttributeProto { name: Some(name.into()), ..Default::default() };
    set(&mut made);
    made
}
