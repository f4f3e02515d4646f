//! What is verified while it is still on its way to the disk, and what is compared once only.

use super::*;
use crate::files::WriteBack;

/// Writes the edit of `base` to the folder `out`, which reaches the disk later.
fn written(base: &Path, out: &Path, disk: Durability<'_>) -> (Model, BakePlan, PathBuf) {
    let model = Model::open(base).unwrap();
    let plan = plan(&model, &PlanOptions::default()).unwrap();
    std::fs::create_dir(out).unwrap();
    let stop = AtomicBool::new(false);
    let options = ApplyOptions { sync: disk, ..ApplyOptions::new(&stop) };
    apply(&model, &plan, out, &options, &|_, _| {}).unwrap();
    (model, plan, out.join("model.onnx"))
}

#[test]
fn a_byte_that_flips_before_the_file_is_on_the_disk_is_found() {
    for store in [Store::Raw, Store::OneFile] {
        let folder = tempfile::tempdir().unwrap();
        let base = build(folder.path(), Spec { store, ..PLAIN }, |_| {});
        let disk = WriteBack::new();
        let out = folder.path().join("out");
        let (model, plan, onnx) = written(&base, &out, Durability::Later(&disk));
        let check = || verify_bytes(&model, &Model::open(&onnx).unwrap(), &plan).unwrap();
        assert!(check().passed());
        let file = if store == Store::Raw { onnx.clone() } else { out.join("weights.data") };
        let clean = std::fs::read(&file).unwrap();
        for tensor in &Model::open(&onnx).unwrap().tensors {
            let (Storage::Embedded { offset, .. } | Storage::External { offset, .. }) = &tensor.storage else {
                continue;
            };
            let mut flipped = clean.clone();
            flipped[*offset as usize + 3] ^= 1;
            std::fs::write(&file, &flipped).unwrap();
            assert!(!check().passed(), "`{}`", tensor.name);
        }
        std::fs::write(&file, &clean).unwrap();
        disk.settle().unwrap();
        assert!(check().passed());
    }
}

#[test]
fn a_file_that_is_gone_before_it_is_on_the_disk_is_told() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), PLAIN, |_| {});
    let disk = WriteBack::new();
    let (_, _, onnx) = written(&base, &folder.path().join("out"), Durability::Later(&disk));
    disk.settle().unwrap();
    std::fs::remove_file(&onnx).unwrap();
    disk.start(&onnx).unwrap();
    assert_eq!(disk.settle().unwrap_err().path, onnx);
}

#[test]
fn every_file_is_synced_and_a_failed_sync_ends_the_bake() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { store: Store::OneFile, ..PLAIN }, |_| {});
    let disk = WriteBack::new();
    let out = folder.path().join("out");
    written(&base, &out, Durability::Later(&disk));
    disk.settle().unwrap();
    let mut synced = disk.synced();
    synced.sort();
    let files = contents(&out).into_iter().map(|(path, bytes)| (path, bytes.len() as u64)).collect::<Vec<_>>();
    assert_eq!(files.len(), 2);
    assert_eq!(synced, files);
    // what could not be brought to the disk is told by the next bake that has to do with it
    disk.start(&folder.path().join("gone")).unwrap();
    while disk.settled(std::time::Duration::ZERO).is_ok_and(|done| !done) {}
    disk.start(&folder.path().join("gone")).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(200));
    let again = folder.path().join("again");
    std::fs::create_dir(&again).unwrap();
    let model = Model::open(&base).unwrap();
    let plan = plan(&model, &PlanOptions::default()).unwrap();
    let stop = AtomicBool::new(false);
    let options = ApplyOptions { sync: Durability::Later(&disk), ..ApplyOptions::new(&stop) };
    let error = apply(&model, &plan, &again, &options, &|_, _| {}).unwrap_err();
    assert!(matches!(error, BakeError::Io { action: "write", .. }), "{error}");
}

#[test]
fn an_output_is_the_same_whether_or_not_it_is_synced() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { store: Store::OneFile, ..PLAIN }, |_| {});
    let disk = WriteBack::new();
    let written = |name: &str, disk: Durability<'_>| {
        let out = folder.path().join(name);
        written(&base, &out, disk);
        let files = contents(&out).into_iter();
        files.map(|(path, bytes)| (path.strip_prefix(&out).unwrap().to_path_buf(), bytes)).collect::<Vec<_>>()
    };
    let now = written("now", Durability::Now);
    assert_eq!(written("later", Durability::Later(&disk)), now);
    assert_eq!(written("never", Durability::Never), now);
    disk.settle().unwrap();
}

/// Of two tensors that are not edited the output says that each lies where the other does. The data file is as it should
/// be, so only the comparison through the two indices can name them.
#[test]
fn a_tensor_that_the_output_places_elsewhere_is_named() {
    let folder = tempfile::tempdir().unwrap();
    let base = build(folder.path(), Spec { store: Store::OneFile, ..PLAIN }, |_| {});
    let (plan, _, out) = bake(&base, &folder.path().join("out")).unwrap();
    assert!(verified(&base, &out, &plan).passed());
    let mut model = ModelProto::decode(std::fs::read(&out).unwrap().as_slice()).unwrap();
    let tensors = &mut model.graph.as_mut().unwrap().initializer;
    let place = |name: &str| tensors.iter().position(|tensor| tensor.name.as_deref() == Some(name)).unwrap();
    let (q, k) = (place("q"), place("k"));
    let data = tensors[q].external_data.clone();
    tensors[q].external_data = std::mem::replace(&mut tensors[k].external_data, data);
    std::fs::write(&out, model.encode_to_vec()).unwrap();
    let report = verified(&base, &out, &plan);
    assert!(!report.passed());
    for name in ["q", "k"] {
        let named = |f: &&Finding| f.kind == FindingKind::Tensor && f.name == name && f.detail.contains("other bytes");
        assert!(report.findings.listed.iter().any(|f| named(&f)), "{name}: {report:?}");
    }
}
