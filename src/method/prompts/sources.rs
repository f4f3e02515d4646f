//! Sources of prompts for a gate: each holds pseudo-harmful and harmful prompts of one hand, so that what tells one hand
//! from another tells nothing of harm.

use std::collections::{HashMap, HashSet};

use super::text::normalised;
use super::{Hand, PromptClass, PromptSource, Prompts, SourceName, Split};

const PSEUDO_HARMFUL: &str = include_str!("../../../fixtures/prompts/pseudo_harmful.txt");
const CONTRASTS: &str = include_str!("../../../fixtures/prompts/contrasts.txt");
const DRESSINGS: &str = include_str!("../../../fixtures/prompts/dressings.txt");

/// What a dressing holds in place of the prompt.
const FIELD: &str = "{prompt}";

/// Prompts of one source and one split.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Both {
    /// To be answered.
    pub pseudo_harmful: Vec<String>,
    /// To be refused.
    pub harmful: Vec<String>,
}

impl Both {
    /// The same prompts in longer requests. Every dressing serves both classes alike, so that none tells of harm.
    fn dressed(&self) -> Self {
        let dressings: Vec<&str> = DRESSINGS.lines().collect();
        let dress = |prompts: &[String]| {
            let each = prompts.iter().zip(dressings.iter().cycle());
            each.map(|(prompt, dressing)| dressing.replace(FIELD, prompt)).collect()
        };
        Self { pseudo_harmful: dress(&self.pseudo_harmful), harmful: dress(&self.harmful) }
    }
}

/// The prompts of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptsOf {
    /// Whose they are.
    pub source: SourceName,
    /// What a gate is fitted on.
    pub train: Both,
    /// What it is chosen on.
    pub val: Both,
}

/// Every source of pseudo-harmful and harmful prompts that a run has: its own, the bundled ones, and the bundled contrast
/// pairs; then all of them dressed. Without those, a gate learns that long and personal requests are pseudo-harmful ones.
/// Bundled prompts keep to their split where they are the run's own; else those of the test split are train prompts
/// too, as nothing is measured on them. What is among the validation or test prompts of the run is left out.
pub fn sources(prompts: &Prompts) -> Vec<PromptsOf> {
    let own = |split| Both {
        pseudo_harmful: prompts.get(PromptClass::PseudoHarmful, split).to_vec(),
        harmful: prompts.get(PromptClass::Harmful, split).to_vec(),
    };
    let plain = |hand| SourceName { hand, dressed: false };
    let mut all = vec![PromptsOf { source: plain(Hand::Own), train: own(Split::Train), val: own(Split::Val) }];
    let is_bundled = matches!(prompts.origin.source, PromptSource::Bundled { .. });
    let bundled = if is_bundled { prompts.clone() } else { Prompts::bundled() };
    let of_split: HashMap<String, Split> = Split::ALL
        .into_iter()
        .flat_map(|split| bundled.get(PromptClass::PseudoHarmful, split).iter().map(move |p| (normalised(p), split)))
        .collect();
    let measured: HashSet<String> = match is_bundled {
        true => HashSet::new(),
        false => PromptClass::ALL
            .into_iter()
            .flat_map(|class| [Split::Val, Split::Test].map(|split| prompts.get(class, split)))
            .flatten()
            .map(|prompt| normalised(prompt))
            .collect(),
    };
    let is_free = |prompt: &str| !measured.contains(&normalised(prompt));
    let splits = |split: Split| match (split, is_bundled) {
        (Split::Train, false) => vec![Split::Train, Split::Test],
        _ => vec![split],
    };
    if !is_bundled {
        let of = |class, split| -> Vec<String> {
            let all = splits(split).into_iter().flat_map(|split| bundled.get(class, split));
            all.filter(|prompt| is_free(prompt)).cloned().collect()
        };
        let both = |split| Both {
            pseudo_harmful: of(PromptClass::PseudoHarmful, split),
            harmful: of(PromptClass::Harmful, split),
        };
        all.push(PromptsOf { source: plain(Hand::Bundled), train: both(Split::Train), val: both(Split::Val) });
    }
    let pairs = |split: Split| {
        let splits = splits(split);
        let is_of = |pseudo: &str| of_split.get(&normalised(pseudo)).is_some_and(|split| splits.contains(split));
        let pairs = PSEUDO_HARMFUL.lines().zip(CONTRASTS.lines());
        let (pseudo_harmful, harmful) = pairs
            .filter(|(pseudo, contrast)| is_of(pseudo) && is_free(pseudo) && is_free(contrast))
            .map(|(pseudo, contrast)| (pseudo.to_string(), contrast.to_string()))
            .unzip();
        Both { pseudo_harmful, harmful }
    };
    all.push(PromptsOf { source: plain(Hand::Contrasts), train: pairs(Split::Train), val: pairs(Split::Val) });
    all.retain(|of| !of.train.pseudo_harmful.is_empty() && !of.train.harmful.is_empty());
    let dressed = |of: &PromptsOf| PromptsOf {
        source: SourceName { dressed: true, ..of.source },
        train: of.train.dressed(),
        val: of.val.dressed(),
    };
    let dressed: Vec<PromptsOf> = all.iter().map(dressed).collect();
    all.extend(dressed);
    all
}

#[cfg(test)]
mod tests {
    use super::super::{LoadOptions, OverlapPolicy, SplitSizes, parse};
    use super::*;

    fn own(harmful: &str) -> Prompts {
        let lines = |word: &str| (0..12).map(|n| format!("{word} {n}")).collect::<Vec<_>>().join("\n");
        let file = |name: &str, text: String, class| parse(name, &text, class, false).unwrap();
        let files = [
            file("harmful.txt", format!("{}\n{harmful}", lines("hack")), PromptClass::Harmful),
            file("pseudo.txt", lines("kill a process"), PromptClass::PseudoHarmful),
            file("harmless.txt", lines("bake bread"), PromptClass::Harmless),
        ];
        let options = LoadOptions::default();
        Prompts::from_class_files(files, SplitSizes { train: 3, val: 3, test: 7 }, options.seed, OverlapPolicy::Refuse)
            .unwrap()
    }

    fn names(all: &[PromptsOf]) -> Vec<(Hand, bool)> {
        all.iter().map(|of| (of.source.hand, of.source.dressed)).collect()
    }

    #[test]
    fn both_classes_are_dressed_alike() {
        assert!(DRESSINGS.lines().count() >= 20 && DRESSINGS.lines().all(|line| line.matches(FIELD).count() == 1));
        let found = sources(&Prompts::bundled());
        let (plain, dressed) = (&found[0].train, &found[2].train);
        let around = |plain: &[String], dressed: &[String]| -> Vec<(String, String)> {
            let each = plain.iter().zip(dressed).map(|(plain, dressed)| dressed.split_once(plain.as_str()).unwrap());
            each.map(|(before, after)| (before.to_string(), after.to_string())).collect()
        };
        let pseudo = around(&plain.pseudo_harmful, &dressed.pseudo_harmful);
        let harmful = around(&plain.harmful, &dressed.harmful);
        assert!(pseudo.iter().zip(&harmful).all(|(a, b)| a == b && a.0.len() + a.1.len() > 10));
    }

    #[test]
    fn bundled_prompts_keep_their_split_where_they_are_the_runs_own() {
        let prompts = Prompts::bundled();
        let found = sources(&prompts);
        assert_eq!(
            names(&found),
            [(Hand::Own, false), (Hand::Contrasts, false), (Hand::Own, true), (Hand::Contrasts, true)]
        );
        let pairs = &found[1];
        for (split, both) in [(Split::Train, &pairs.train), (Split::Val, &pairs.val)] {
            assert!(both.pseudo_harmful.len() > 5 && both.pseudo_harmful.len() == both.harmful.len());
            let all = prompts.get(PromptClass::PseudoHarmful, split);
            assert!(both.pseudo_harmful.iter().all(|prompt| all.contains(prompt)));
        }
    }

    #[test]
    fn other_prompts_get_all_bundled_ones_beside_them_but_what_is_measured() {
        let known = PSEUDO_HARMFUL.lines().count();
        let found = sources(&own(""));
        let hands = [Hand::Own, Hand::Bundled, Hand::Contrasts];
        assert_eq!(names(&found), [hands.map(|hand| (hand, false)), hands.map(|hand| (hand, true))].concat());
        let count = |of: &PromptsOf| of.train.pseudo_harmful.len() + of.val.pseudo_harmful.len();
        assert_eq!(found[1..3].iter().map(count).collect::<Vec<_>>(), [known, CONTRASTS.lines().count()]);
        // a contrast that is one of the run's own harmful prompts is left out where it is measured
        let contrast = CONTRASTS.lines().next().unwrap();
        let prompts = own(&contrast.to_uppercase());
        let measured = [Split::Val, Split::Test]
            .iter()
            .any(|split| prompts.get(PromptClass::Harmful, *split).contains(&contrast.to_uppercase()));
        let pairs = sources(&prompts).swap_remove(2);
        let there = pairs.train.harmful.iter().chain(&pairs.val.harmful).any(|prompt| prompt == contrast);
        assert_eq!(there, !measured);
    }

    #[test]
    fn every_contrast_has_its_pair() {
        assert!(PSEUDO_HARMFUL.lines().count() >= CONTRASTS.lines().count());
        assert!(CONTRASTS.lines().count() >= 100);
    }
}
