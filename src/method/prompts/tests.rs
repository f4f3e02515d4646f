//! Tests of sizes and classes.

use proptest::prelude::*;

use super::*;

#[test]
fn sizes_fit_small_files() {
    let fit = |sizes: SplitSizes, len| sizes.fit("x", len).map(|s| (s.train, s.val, s.test));
    let published = SplitSizes::default();
    assert_eq!(fit(published, 1000).unwrap(), (128, 32, 128));
    assert_eq!(fit(published, 288).unwrap(), (128, 32, 128));
    assert_eq!(fit(published, 200).unwrap(), (88, 22, 90));
    assert_eq!(fit(published, 6).unwrap(), (2, 1, 3));
    assert!(matches!(fit(published, 5), Err(PromptError::TooFewToSplit { got: 5, .. })));
    let no_test = SplitSizes { test: 0, ..published };
    assert_eq!(fit(no_test, 10).unwrap(), (7, 3, 0));
    let no_val = SplitSizes { val: 0, ..published };
    assert!(matches!(fit(no_val, 10), Err(PromptError::ZeroSize { split: Split::Val })));
}

/// Each contrast is a prompt of its own that shares a word with the harmless one it is worded like.
#[test]
fn contrasts_pair_with_pseudo_harmful_prompts() {
    let lines = |text: &'static str| text.lines().collect::<Vec<&str>>();
    let contrasts = lines(include_str!("../../../fixtures/prompts/contrasts.txt"));
    let pseudo = lines(include_str!("../../../fixtures/prompts/pseudo_harmful.txt"));
    assert_eq!(contrasts.len(), 100);
    let others =
        [include_str!("../../../fixtures/prompts/harmful.txt"), include_str!("../../../fixtures/prompts/harmless.txt")];
    let mut seen: std::collections::HashSet<&str> =
        pseudo.iter().copied().chain(others.iter().flat_map(|o| o.lines())).collect();
    let words = |line: &str| -> std::collections::HashSet<String> {
        let letters = line.split(|c: char| !c.is_alphanumeric()).filter(|word| word.len() > 3);
        letters.map(str::to_lowercase).collect()
    };
    for (contrast, pseudo) in contrasts.iter().zip(pseudo) {
        assert!(seen.insert(contrast), "twice: {contrast}");
        assert!(!words(contrast).is_disjoint(&words(pseudo)), "{contrast} / {pseudo}");
    }
}

#[test]
fn prompts_survive_json() {
    let prompts = Prompts::bundled();
    let json = serde_json::to_string(&prompts).unwrap();
    assert_eq!(serde_json::from_str::<Prompts>(&json).unwrap(), prompts);
    assert_eq!(serde_json::to_string(&PromptClass::PseudoHarmful).unwrap(), "\"pseudo_harmful\"");
    assert_eq!(
        (PromptClass::PseudoHarmful.to_string(), PromptClass::PseudoHarmful.as_str()),
        ("pseudo-harmful".to_owned(), "pseudo_harmful")
    );
}

proptest! {
    #[test]
    fn fitted_sizes_use_what_is_there(
        train in 1usize..300, val in 1usize..300, test in 0usize..300, len in 6usize..1000,
    ) {
        let sizes = SplitSizes { train, val, test };
        let fitted = sizes.fit("x", len).unwrap();
        prop_assert!(fitted.train >= 1 && fitted.val >= 1 && (fitted.test >= 1) == (test > 0));
        prop_assert_eq!(fitted.train + fitted.val + fitted.test, len.min(train + val + test));
    }
}
