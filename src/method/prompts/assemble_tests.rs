//! Tests of assembled prompt sets, overlaps and draws.

use PromptClass::{Harmful, Harmless, PseudoHarmful};

use super::*;

fn numbered(what: &str, count: usize) -> String {
    (0..count).map(|i| format!("{what} {i}\n")).collect()
}

fn file(name: &str, class: PromptClass, split: Option<Split>, text: &str) -> ParsedFile {
    let mut parsed = parse(name, text, class, false).unwrap();
    parsed.file.split = split;
    parsed
}

fn given(files: Vec<ParsedFile>, overlap: OverlapPolicy) -> Result<Prompts, PromptError> {
    Prompts::from_split_files(PromptSource::Files, files, overlap)
}

fn sha256(text: &str) -> String {
    Sha256::digest(text.as_bytes()).iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn overlaps_are_found_across_splits_and_classes() {
    let train = file("h.txt", Harmful, Some(Split::Train), "a\nb\nc\n");
    let val = file("v.txt", Harmful, Some(Split::Val), "d\n B \ne\nA\n");
    let other = file("o.txt", Harmless, Some(Split::Train), "f\nC\n");
    let message = given(vec![val.clone(), train.clone()], OverlapPolicy::Refuse).unwrap_err().to_string();
    assert_eq!(
        message,
        "2 prompts are in two splits of a class: for example `b` in harmful train (`h.txt`, line 2) and in harmful val (`v.txt`, line 2)"
    );
    let dropped = given(vec![val.clone(), train.clone()], OverlapPolicy::Drop).unwrap();
    assert_eq!(dropped.sets.harmful.val, ["d", "e"]);
    assert_eq!(dropped.origin.dropped.len(), 2);
    assert_eq!(dropped.origin.files[1].prompts, 2);
    for policy in [OverlapPolicy::Refuse, OverlapPolicy::Drop] {
        let error = given(vec![train.clone(), val.clone(), other.clone()], policy).unwrap_err();
        assert!(matches!(error, PromptError::ClassOverlap { count: 1, .. }), "{error}");
    }
    let kept = given(vec![train.clone(), val, other], OverlapPolicy::Keep).unwrap();
    assert_eq!((kept.sets.harmful.val.len(), kept.origin.overlaps.len()), (4, 3));
    assert!(kept.refuse_overlap().is_err());
    let same = file("v.txt", Harmful, Some(Split::Val), "a\n");
    let error = given(vec![train, same], OverlapPolicy::Drop).unwrap_err();
    assert_eq!(error.to_string(), "every harmful val prompt is in an earlier split too");
}

#[test]
fn one_file_a_class_is_split_by_the_seed() {
    let sizes = SplitSizes { train: 4, val: 2, test: 3 };
    let files = || {
        [
            file("h.txt", Harmful, None, &numbered("h", 7)),
            file("p.txt", PseudoHarmful, None, &numbered("p", 10)),
            file("l.txt", Harmless, None, &numbered("l", 8)),
        ]
    };
    let prompts = Prompts::from_class_files(files(), sizes, 1, OverlapPolicy::Refuse).unwrap();
    // random.seed(1); [random.sample(range(n), n)[:4] for n in (10, 8, 7)]
    assert_eq!(prompts.sets.pseudo_harmful.train, ["p 2", "p 1", "p 4", "p 0"]);
    assert_eq!(prompts.sets.harmless.train[..3], ["l 1", "l 3", "l 0"]);
    assert_eq!(prompts.sets.harmful.train, ["h 2", "h 5"]);
    assert_eq!(prompts.sets.pseudo_harmful.test.len(), 3);
    assert_eq!(
        (prompts.sets.harmful.train.len(), prompts.sets.harmful.val.len(), prompts.sets.harmful.test.len()),
        (2, 1, 4)
    );
    assert_eq!(prompts.origin.seed, Some(1));

    // Repeated prompts never end in two splits, even where they were kept on reading.
    let mut files = files();
    files[0] = parse("h.txt", &numbered("h", 7).repeat(2), Harmful, true).unwrap();
    let again = Prompts::from_class_files(files, sizes, 1, OverlapPolicy::Refuse).unwrap();
    assert_eq!(again.sets.harmful, prompts.sets.harmful);
    assert_eq!(again.fingerprint(), prompts.fingerprint());
}

#[test]
fn the_published_draw_is_reproduced() {
    let mut files = Vec::new();
    for (letter, class, sizes) in
        [("p", PseudoHarmful, [1055, 132, 132]), ("l", Harmless, [2000, 500, 500]), ("h", Harmful, [260, 39, 572])]
    {
        for (split, size) in Split::ALL.into_iter().zip(sizes) {
            files.push(file("x.txt", class, Some(split), &numbered(&format!("{letter} {split}"), size)));
        }
    }
    let all = given(files, OverlapPolicy::Refuse).unwrap();
    let chosen = all.sample(SplitSizes::default(), PUBLISHED_SEED);
    let ends = |class, split| {
        let set = chosen.get(class, split);
        (set[0].as_str(), set[set.len() - 1].as_str())
    };
    // Printed by CPython 3.11 from random.seed(1) and random.sample in the published order.
    let expected = [
        ("p train 275", "p train 931"),
        ("l train 1438", "l train 37"),
        ("h train 80", "h train 28"),
        ("p val 64", "p val 74"),
        ("l val 457", "l val 240"),
        ("h val 9", "h val 17"),
        ("p test 110", "p test 41"),
        ("h test 168", "h test 208"),
        ("l test 369", "l test 83"),
    ];
    for ((split, class), expected) in PUBLISHED_ORDER.into_iter().zip(expected) {
        assert_eq!(ends(class, split), expected);
    }
    let joined: Vec<&str> =
        PUBLISHED_ORDER.iter().flat_map(|&(split, class)| chosen.get(class, split)).map(String::as_str).collect();
    assert_eq!(sha256(&joined.join("\n")), "d10bd6bf3e8ffc68ea52a1397ec65cf122a29da8cf99a2e845866f8ffc80e962");
    assert_eq!(chosen.origin.sizes, Some(SplitSizes::default()));
}

#[test]
fn the_bundled_prompts_parse_and_split() {
    let prompts = Prompts::bundled();
    for class in PromptClass::ALL {
        let set = prompts.class(class);
        assert!(set.train.len() >= 64 && set.val.len() >= 16 && set.test.len() >= set.val.len(), "{class}");
    }
    for file in &prompts.origin.files {
        assert_eq!(file.duplicates, 0, "{}", file.name);
        let set = prompts.class(file.class);
        assert_eq!(set.train.len() + set.val.len() + set.test.len(), file.prompts);
    }
    assert!(prompts.origin.notes().is_empty());
    assert!(!BUNDLED_VERSION.is_empty());
    let no_test = SplitSizes { test: 0, ..SplitSizes::default() };
    assert!(Prompts::bundled_with(no_test, 7).unwrap().sets.harmful.test.is_empty());
}

#[test]
fn the_fingerprint_sees_prompts_order_class_and_split_but_not_origin() {
    let mut prompts = Prompts::bundled();
    let before = prompts.fingerprint();
    assert_eq!(before.len(), 64);
    prompts.origin.seed = None;
    assert_eq!(prompts.fingerprint(), before);
    let other = {
        let mut other = prompts.clone();
        other.sets.harmful.train.swap(0, 1);
        other
    };
    assert_ne!(other.fingerprint(), before);
    let moved = prompts.sets.harmful.test.remove(0);
    prompts.sets.harmful.val.push(moved);
    assert_ne!(prompts.fingerprint(), before);
}

#[test]
fn notes_say_what_was_left_out() {
    let text = "type,prompt\ncontrast_x,a\nx,b\ncontrast_y,A\ncontrast_y,c\n";
    let train = file("x.csv", Harmful, Some(Split::Train), text);
    let test = file("y.txt", Harmful, Some(Split::Test), "c\nd\n");
    let prompts = given(vec![train, test], OverlapPolicy::Drop).unwrap();
    assert_eq!(
        prompts.origin.notes(),
        [
            "`x.csv`: took the 3 rows that the column `type` marks as unsafe, for harmful; skipped 1",
            "`x.csv`: 1 of 3 prompts repeat an earlier one and were left out",
            "1 prompt is in two places and left out of the second: for example `c` in harmful train (`x.csv`, line 5) and in harmful test (`y.txt`, line 1)",
        ]
    );
}

/// What the seed leaves of the train prompts serves gates, unless it is measured; harmless prompts serve none.
#[test]
fn what_is_not_drawn_is_kept_where_nothing_measures_it() {
    let train = |what: &str| format!("{}TEST 1\n{what} 0\n", numbered(what, 9));
    let files = vec![
        file("h.txt", Harmful, Some(Split::Train), &train("h")),
        file("t.txt", Harmful, Some(Split::Test), "Test  1\ntest 2\n"),
        file("p.txt", PseudoHarmful, Some(Split::Train), &numbered("p", 9)),
        file("l.txt", Harmless, Some(Split::Train), &numbered("l", 9)),
    ];
    let all = given(files, OverlapPolicy::Keep).unwrap();
    let sizes = SplitSizes { train: 4, val: 2, test: 2 };
    let drawn = all.sample(sizes, 1);
    let set = drawn.class(Harmful);
    let mut known: Vec<&String> = set.train.iter().chain(&set.further).collect();
    known.sort_unstable();
    let every = numbered("h", 9);
    assert_eq!(known.into_iter().map(String::as_str).collect::<Vec<_>>(), every.lines().collect::<Vec<_>>());
    assert_eq!(drawn.class(PseudoHarmful).further.len(), 5);
    assert!(drawn.class(Harmless).further.is_empty());
    // one file a class: what is beyond the sizes
    let files = [(Harmful, "h"), (PseudoHarmful, "p"), (Harmless, "l")]
        .map(|(class, what)| file(&format!("{what}.txt"), class, None, &numbered(what, 2000)));
    let split = Prompts::from_class_files(files, sizes, 1, OverlapPolicy::Refuse).unwrap();
    let set = split.class(Harmful);
    assert_eq!(set.train.len() + set.further.len(), MOST_TRAIN);
    let drawn: HashSet<&String> = set.train.iter().chain(&set.val).chain(&set.test).collect();
    assert!(set.further.iter().all(|prompt| !drawn.contains(prompt)));
    // other prompts of that kind are other prompts
    let mut fewer = split.clone();
    fewer.sets.harmful.further.pop();
    assert_ne!(fewer.fingerprint(), split.fingerprint());
}
