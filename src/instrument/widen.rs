//! bfloat16 graphs in float32: ONNX Runtime's CPU provider computes no bfloat16 products.

use crate::onnx::DataType;
use crate::onnx::proto::{GraphProto, attr_int, node, type_proto};

/// Turns every bfloat16 value into float32: tensors are cast where they enter, casts to bfloat16 become casts to
/// float32. Values that were rounded to bfloat16 between operators are not any more.
pub(super) fn widen_bfloat16(main: &mut GraphProto) {
    let (narrow, wide) = (DataType::BFLOAT16.0, DataType::FLOAT.0);
    let mut casts = Vec::new();
    let cast = |from: &str, to: &str| node("Cast", to, &[from], &[to], vec![attr_int("to", i64::from(wide))]);
    for tensor in main.initializer.iter_mut().filter(|t| t.data_type == Some(narrow)) {
        let name = tensor.name.clone().unwrap_or_default();
        let stored = format!("{name}.lancet_stored");
        casts.push(cast(&stored, &name));
        tensor.name = Some(stored);
    }
    let mut nodes = Vec::with_capacity(main.node.len() + casts.len());
    nodes.append(&mut casts);
    for mut n in std::mem::take(&mut main.node) {
        for attribute in &mut n.attribute {
            if matches!(attribute.name.as_deref(), Some("to" | "dtype")) && attribute.i == Some(i64::from(narrow)) {
                attribute.i = Some(i64::from(wide));
            }
        }
        let constant = n.attribute.iter().any(|a| a.t.as_ref().is_some_and(|t| t.data_type == Some(narrow)));
        if constant && n.op() == "Constant" {
            let name = n.output[0].clone();
            let stored = format!("{name}.lancet_stored");
            n.output[0].clone_from(&stored);
            nodes.push(n);
            nodes.push(cast(&stored, &name));
        } else {
            nodes.push(n);
        }
    }
    main.node = nodes;
    for info in main.input.iter_mut().chain(&mut main.output) {
        if let Some(type_proto::Value::TensorType(t)) = info.r#type.as_mut().and_then(|t| t.value.as_mut())
            && t.elem_type == Some(narrow)
        {
            t.elem_type = Some(wide);
        }
    }
}
