//! `verify_bytes` as a control: every tampering with an honest output is found and named, whatever the output says of
//! itself, and what cannot be written right is refused before anything is written.

use super::*;
use crate::bake::constants::store;
use crate::edit::Ablation;
use crate::onnx::patch::Patch;

fn raw(model: &mut ModelProto, name: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let graph = model.graph.as_mut().unwrap();
    let tensor = graph.initializer.iter_mut().find(|t| t.name.as_deref() == Some(name)).unwrap();
    change(tensor.raw_data.as_mut().unwrap());
}

type Change = fn(&mut ModelProto);

/// What is done to an output, and how the difference is named.
const TAMPERINGS: &[(FindingKind, &str, Change)] = &[
    (FindingKind::Tensor, "down", |m| raw(m, "down", |bytes| bytes[400] ^= 1)),
    (FindingKind::Tensor, "o", |m| raw(m, "o", |bytes| bytes[0] ^= 1)),
    (FindingKind::Tensor, "head", |m| raw(m, "head", |bytes| bytes[0] ^= 1)),
    (FindingKind::Tensor, "norm1", |m| raw(m, "norm1", |bytes| bytes[0] ^= 1)),
    (FindingKind::Tensor, "extra", |m| {
        let name = Some("extra".to_string());
        let tensor =
            TensorProto { name, dims: vec![1], data_type: Some(1), float_data: vec![1.0], ..Default::default() };
        m.graph.as_mut().unwrap().initializer.push(tensor);
    }),
    (FindingKind::Tensor, "q", |m| m.graph.as_mut().unwrap().initializer.retain(|t| t.name.as_deref() != Some("q"))),
    (FindingKind::Tensor, "up", |m| {
        let graph = m.graph.as_mut().unwrap();
        let tensor = graph.initializer.iter_mut().find(|t| t.name.as_deref() == Some("up")).unwrap();
        tensor.dims.reverse();
    }),
    (FindingKind::Node, "extra", |m| {
        m.graph.as_mut().unwrap().node.push(node("Identity", "extra", &["x0"], &["nowhere"], vec![]))
    }),
    (FindingKind::Node, "weights", |m| {
        let node = m.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op() == "Softmax").unwrap();
        node.attribute[0].i = Some(1);
    }),
    (FindingKind::Node, "hidden", |m| {
        let node = m.graph.as_mut().unwrap().node.iter_mut().find(|n| n.op() == "Relu").unwrap();
        node.op_type = Some("Sigmoid".into());
    }),
    (FindingKind::Node, "x2", |m| {
        let node = m.graph.as_mut().unwrap().node.iter_mut().find(|n| n.label() == "x2").unwrap();
        node.input[1] = "x1".into();
    }),
    (FindingKind::Node, "q.out", |m| {
        let nodes = &mut m.graph.as_mut().unwrap().node;
        let at = nodes.iter().position(|n| n.label() == "q.out").unwrap();
        nodes.swap(at, at + 1);
    }),
    (FindingKind::Value, "more", |m| {
        m.graph.as_mut().unwrap().input.push(value("more", DataType::FLOAT, &["n"]));
    }),
    (FindingKind::Value, "logits", |m| {
        m.graph.as_mut().unwrap().output[0] = value("logits", DataType::FLOAT, &["a", "b", "c"])
    }),
    (FindingKind::Value, "x1", |m| m.graph.as_mut().unwrap().value_info.push(value("x1", DataType::FLOAT, &["n"]))),
    (FindingKind::Function, "local.F", |m| {
        let function = FunctionProto { name: Some("F".into()), domain: Some("local".into()), ..Default::default() };
        m.functions.push(function);
    }),
    (FindingKind::Model, "opset import `ai.onnx`", |m| m.opset_import[0].version = Some(18)),
    (FindingKind::Model, "opset import `com.other`", |m| {
        m.opset_import.push(OperatorSetIdProto { domain: Some("com.other".into()), version: Some(1) });
    }),
    (FindingKind::Model, "ir_version", |m| m.ir_version = Some(9)),
    (FindingKind::Model, "producer_name", |m| m.producer_name = Some("somebody".into())),
    (FindingKind::Model, "name", |m| m.graph.as_mut().unwrap().name = Some("other".into())),
    (FindingKind::Metadata, "author", |m| m.metadata_props[0].value = Some("somebody".into())),
    (FindingKind::Metadata, "author", |m| m.metadata_props.push(entry("author", "somebody"))),
    (FindingKind::Metadata, "lancet.strength", |m| m.metadata_props.push(entry("lancet.strength", "1e-15"))),
    (FindingKind::Metadata, "lancet.lambda", |m| m.metadata_props.push(entry("lancet.lambda", "0.5"))),
    (FindingKind::Metadata, "lancet.direction_sha256", |m| m.metadata_props[2].value = Some("0".repeat(64))),
    (FindingKind::Metadata, "lancet.version", |m| m.metadata_props[1].value = Some("not a version".into())),
    (FindingKind::Metadata, "lancet.version", |m| {
        m.metadata_props.remove(1);
    }),
];

fn named(report: &ByteReport, what: FindingKind, name: &str) -> bool {
    report.findings.listed.iter().any(|found| found.kind == what && found.name == name)
}

#[test]
fn every_tampering_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
    let clean = std::fs::read(&out).unwrap();
    assert_eq!(ModelProto::decode(clean.as_slice()).unwrap().encode_to_vec(), clean, "coding alone changes nothing");
    for (what, name, change) in TAMPERINGS {
        let mut model = ModelProto::decode(clean.as_slice()).unwrap();
        change(&mut model);
        std::fs::write(&out, model.encode_to_vec()).unwrap();
        let Ok(opened) = Model::open(&out) else { continue }; // refused as malformed before it is compared
        let report = verify_bytes(&Model::open(&base).unwrap(), &opened, &plan).unwrap();
        assert!(!report.passed(), "{what:?} `{name}` passed");
        assert!(named(&report, *what, name), "{what:?} `{name}` is not named: {:?}", report.findings);
        assert!(report.findings.listed.len() <= 3, "`{name}`: what is as it was is not named: {:?}", report.findings);
    }
    std::fs::write(&out, &clean).unwrap();
    assert!(verified(&base, &out, &plan).passed());
}

#[test]
fn the_version_may_be_another_and_switches_nothing_off() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
    let mut model = ModelProto::decode(std::fs::read(&out).unwrap().as_slice()).unwrap();
    model.metadata_props[1].value = Some("0.0.7".into());
    std::fs::write(&out, model.encode_to_vec()).unwrap();
    let report = verified(&base, &out, &plan);
    assert!(report.passed(), "{report:?}");
    assert!(report.unchecked.iter().any(|what| what.contains("0.0.7")), "it is said: {:?}", report.unchecked);
    raw(&mut model, "down", |bytes| bytes[8] ^= 1);
    std::fs::write(&out, model.encode_to_vec()).unwrap();
    assert!(named(&verified(&base, &out, &plan), FindingKind::Tensor, "down"));
}

#[test]
fn what_says_where_a_direction_came_from_has_known_forms() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let ran = PlanOptions {
        metadata: [("lambda", "0.5"), ("layer", "3"), ("position", "-1"), ("guard", "forced")]
            .map(|(key, value)| (format!("lancet.{key}"), value.to_string()))
            .to_vec(),
        ..PlanOptions::default()
    };
    let (_, _, out) = bake_as(&base, &folder.path().join("out"), &ran).unwrap();
    // who verifies does not know them
    let asked = plan(&Model::open(&base).unwrap(), &PlanOptions::default()).unwrap();
    let report = verified(&base, &out, &asked);
    assert!(report.passed() && report.unchecked.iter().any(|what| what.contains("`lambda`")), "{report:?}");
    let clean = ModelProto::decode(std::fs::read(&out).unwrap().as_slice()).unwrap();
    for (at, value) in [(3, "2"), (3, "0.50"), (4, "-3"), (5, "1"), (6, "passed"), (6, "")] {
        let mut model = clean.clone();
        model.metadata_props[at].value = Some(value.into());
        std::fs::write(&out, model.encode_to_vec()).unwrap();
        assert!(!verified(&base, &out, &asked).passed(), "{at} {value}");
    }
    for (at, to) in [(3, 7), (1, 3)] {
        let mut model = clean.clone();
        let entry = model.metadata_props.remove(at);
        model.metadata_props.insert(to.min(model.metadata_props.len()), entry);
        std::fs::write(&out, model.encode_to_vec()).unwrap();
        assert!(!verified(&base, &out, &asked).passed(), "order {at} {to}");
    }
}

#[test]
fn one_flipped_bit_of_any_type_fails_by_name() {
    for dtype in [DataType::FLOAT, DataType::FLOAT16, DataType::BFLOAT16, DataType::DOUBLE] {
        for store in [Store::Raw, Store::OneFile] {
            for gemm in [false, true] {
                let folder = tempfile::tempdir().unwrap();
                let base = build(folder.path(), Spec { dtype, store, gemm, bias: true, ..PLAIN }, |_| {});
                let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
                let index = Model::open(&out).unwrap();
                for edit in &plan.tensors {
                    let tensor = index.tensors.iter().find(|t| t.name == edit.name).unwrap();
                    let (file, at) = match &tensor.storage {
                        Storage::Embedded { offset, length } => (out.clone(), offset + length / 2),
                        Storage::External { offset, length, .. } => {
                            (out.with_file_name("weights.data"), offset + length / 2)
                        }
                        other => panic!("{other:?}"),
                    };
                    let clean = std::fs::read(&file).unwrap();
                    let mut bytes = clean.clone();
                    bytes[at as usize] ^= 1;
                    std::fs::write(&file, bytes).unwrap();
                    let report = verified(&base, &out, &plan);
                    let found = report.tensors.iter().find(|t| t.initializer == edit.name).unwrap();
                    assert_eq!((found.differing_bytes, report.changed_bytes_outside_plan), (1, 0), "{}", edit.name);
                    assert!(named(&report, FindingKind::Tensor, &edit.name) && !report.passed(), "{}", edit.name);
                    std::fs::write(&file, clean).unwrap();
                }
                assert!(verified(&base, &out, &plan).passed());
            }
        }
    }
}

#[test]
fn external_data_is_compared_to_the_last_byte() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { store: Store::OneFile, ..PLAIN }, |_| {});
    let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
    let file = out.with_file_name("weights.data");
    let clean = std::fs::read(&file).unwrap();
    let flipped = |at: usize| {
        let mut bytes = clean.clone();
        bytes[at] ^= 1;
        bytes
    };
    let longer = [clean.clone(), vec![0]].concat();
    for bytes in [flipped(0), flipped(clean.len() - 1), longer, clean[..clean.len() - 1].to_vec()] {
        std::fs::write(&file, bytes).unwrap();
        let report = verified(&base, &out, &plan);
        assert!(!report.passed());
        let found = &report.findings.listed[0];
        assert_eq!(
            (found.kind, found.file.as_str()),
            (FindingKind::ExternalData, "weights.data"),
            "{:?}",
            report.findings
        );
    }
}

#[test]
fn the_untouched_base_never_passes() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let (honest, _, _) = bake(&base, &folder.path().join("out")).unwrap();
    let report = verified(&base, &base, &honest);
    assert!(!report.passed() && report.extent == Extent::Untouched, "{report:?}");
    let out = folder.path().join("claims.onnx");
    for strength in ["1e-15", "1", "0.5"] {
        let mut model = ModelProto::decode(std::fs::read(&base).unwrap().as_slice()).unwrap();
        let own = honest.metadata.iter().take(2).map(|(key, value)| entry(key, value));
        model.metadata_props.extend(own);
        model.metadata_props.push(entry("lancet.strength", strength));
        std::fs::write(&out, model.encode_to_vec()).unwrap();
        let report = verified(&base, &out, &honest);
        assert!(!report.passed() && named(&report, FindingKind::Tensor, "down"));
        assert!(report.claims.iter().any(|c| c.key == "strength" && c.said.as_deref() == Some(strength)));
        // not even where it is asked for, if it is so little that no stored value changes
        let model = Model::open(&base).unwrap();
        let graph = Graph::new(&model);
        let lm = LanguageModel::new(&graph, &ModelConfig::default()).unwrap();
        let little = Ablation::new(direction()).with_strength(1e-15).into();
        let plan = BakePlan::new(&graph, &lm, &little, &PlanOptions::default()).unwrap();
        assert_eq!(verified(&base, &out, &plan).extent, Extent::Void);
    }
}

#[test]
fn empty_tensors_are_nothing_to_edit() {
    // a low-rank branch of rank 0, as an adapter that is not there
    for tied in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let base = build(folder.path(), Spec { tied, ..PLAIN }, |model| {
            let graph = model.graph.as_mut().unwrap();
            let empty = |name: &str, dims: Vec<i64>| TensorProto {
                name: Some(name.into()),
                dims,
                data_type: Some(1),
                raw_data: Some(Vec::new()),
                ..Default::default()
            };
            graph.initializer.push(empty("lora.a", vec![F as i64, 0]));
            graph.initializer.push(empty("lora.b", vec![0, D as i64]));
            let at = graph.node.iter().position(|n| n.label() == "x2").unwrap();
            graph.node[at].input[1] = "with.lora".into();
            let added = [
                node("MatMul", "low", &["hidden", "lora.a"], &["low"], vec![]),
                node("MatMul", "lora", &["low", "lora.b"], &["lora"], vec![]),
                node("Add", "with.lora", &["down.out", "lora"], &["with.lora"], vec![]),
            ];
            graph.node.splice(at..at, added);
        });
        let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
        assert!(plan.tensors.iter().all(|edit| !edit.shape.contains(&0)));
        assert!(verified(&base, &out, &plan).passed());
    }
}

#[test]
fn constants_that_overflow_or_vanish_are_refused_by_name() {
    let folder = tempfile::tempdir().unwrap();
    let model = Model::open(&build(folder.path(), PLAIN, |_| {})).unwrap();
    let graph = Graph::new(&model);
    for (dtype, value) in [
        (DataType::FLOAT16, 1e6),
        (DataType::BFLOAT16, 3.4e38),
        (DataType::FLOAT, 1e39),
        (DataType::DOUBLE, f64::INFINITY),
    ] {
        let error = store(&graph, dtype, ("c", &[0.0, value], vec![2]), &mut Patch::default()).unwrap_err();
        assert!(matches!(&error, BakeError::NotFinite { tensor } if tensor == "c"), "{dtype}: {error}");
    }
    for (dtype, value) in [(DataType::FLOAT16, 1e-9), (DataType::FLOAT, 1e-50)] {
        let error = store(&graph, dtype, ("c", &[0.0, value], vec![2]), &mut Patch::default()).unwrap_err();
        assert!(matches!(&error, BakeError::Vanishes { tensor, .. } if tensor == "c"), "{dtype}: {error}");
    }
    assert!(store(&graph, DataType::FLOAT16, ("c", &[65504.0, 1e-9], vec![2]), &mut Patch::default()).is_ok());
}

#[test]
fn an_edited_value_that_overflows_is_refused_by_name() {
    // as large as the type allows, against the direction in all entries but one, which has to grow
    let r = direction().unit().to_vec();
    let column: Vec<f16> =
        (0..D).map(|k| f16::from_f64(65504.0 * if k == 3 { r[k] } else { -r[k] }.signum())).collect();
    for gemm in [false, true] {
        let folder = tempfile::tempdir().unwrap();
        let base = build(folder.path(), Spec { dtype: DataType::FLOAT16, gemm, ..PLAIN }, |model| {
            raw(model, "down", |bytes| {
                let value = |i: usize| column[if gemm { i / F } else { i % D }];
                *bytes = (0..D * F).flat_map(|i| value(i).to_le_bytes()).collect();
            });
        });
        let error = bake(&base, &folder.path().join("out")).unwrap_err();
        assert!(matches!(&error, BakeError::NotFinite { tensor } if tensor == "down"), "{error}");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "only the input is there");
    }
}

#[test]
fn stale_checksums_are_taken_off() {
    let folder = tempfile::tempdir().unwrap();
    for (n, store) in [Store::OneFile, Store::ManyFiles].into_iter().enumerate() {
        let input = folder.path().join(format!("in{n}"));
        std::fs::create_dir(&input).unwrap();
        let base = build(&input, Spec { store, ..PLAIN }, |model| {
            for tensor in &mut model.graph.as_mut().unwrap().initializer {
                tensor.external_data.insert(1, entry("checksum", "da39a3ee5e6b4b0d3255bfef95601890afd80709"));
            }
        });
        let (plan, _, out) = bake(&base, &folder.path().join(format!("out{n}"))).unwrap();
        assert!(verified(&base, &out, &plan).passed());
        let model = ModelProto::decode(std::fs::read(&out).unwrap().as_slice()).unwrap();
        for tensor in &model.graph.as_ref().unwrap().initializer {
            let kept = tensor.external_data.iter().any(|e| e.key.as_deref() == Some("checksum"));
            let edited = plan.tensors.iter().any(|edit| Some(edit.name.as_str()) == tensor.name.as_deref());
            // a file of its own that the bake does not change keeps what is said of it
            assert_eq!(kept, store == Store::ManyFiles && !edited, "{:?}", tensor.name);
        }
    }
}

#[cfg(unix)]
#[test]
fn a_model_file_that_would_pass_two_gib_is_refused_before_anything_is_written() {
    use std::io::{Seek, SeekFrom, Write};
    let folder = tempfile::tempdir().unwrap();
    let small = build(folder.path(), PLAIN, |_| {});
    let proto = std::fs::read(&small).unwrap();
    std::fs::remove_file(&small).unwrap();
    // filled up by training info, which is never read, and sparse on the disk
    for (short, fits) in [(40u64, false), (100_000, true)] {
        let total = (1u64 << 31) - short;
        let rest = total - proto.len() as u64 - 7;
        let mut head = vec![0xa2, 0x01];
        head.extend(crate::onnx::wire::varint(rest));
        assert_eq!(head.len(), 7);
        let mut file = std::fs::File::create(&small).unwrap();
        file.write_all(&head).unwrap();
        file.set_len(head.len() as u64 + rest).unwrap();
        file.seek(SeekFrom::End(0)).unwrap();
        file.write_all(&proto).unwrap();
        drop(file);
        let model = Model::open(&small).unwrap();
        assert_eq!(model.file_len, total);
        let plan = plan(&model, &PlanOptions::default()).unwrap();
        let out = folder.path().join("out");
        std::fs::create_dir(&out).unwrap();
        match fits {
            true => {
                assert!(super::super::layout::Layout::new(&model, &plan, super::super::layout::Entries::Added).is_ok())
            }
            false => {
                let stop = AtomicBool::new(false);
                let error = apply(&model, &plan, &out, &ApplyOptions::new(&stop), &|_, _| {}).unwrap_err();
                assert!(matches!(error, BakeError::TooLarge { len, .. } if len > total), "{error}");
                assert!(error.hint().unwrap().contains("save_as_external_data"));
            }
        }
        assert_eq!(std::fs::read_dir(&out).unwrap().count(), 0);
        std::fs::remove_dir(&out).unwrap();
    }
}
