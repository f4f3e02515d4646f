//! Sources of prompts for a gate: each holds pseudo-harmful and harmful prompts of one hand, so that what tells one hand
//! from another tells nothing of harm.

use std::collections::{HashMap, HashSet};

use super::families::{Family, families};
use super::questions::question;
use super::text::normalised;
use super::{Dress, Hand, PromptClass, PromptSource, Prompts, SourceName, Split};

const PSEUDO_HARMFUL: &str = include_str!("../../../fixtures/prompts/pseudo_harmful.txt");
const CONTRASTS: &str = include_str!("../../../fixtures/prompts/contrasts.txt");
const REQUESTS: [&str; 2] = [
    include_str!("../../../fixtures/prompts/requests_pseudo_harmful.txt"),
    include_str!("../../../fixtures/prompts/requests_harmful.txt"),
];
const DRESSINGS: &str = include_str!("../../../fixtures/prompts/dressings.txt");
const BYPASSES: &str = include_str!("../../../fixtures/prompts/bypasses.txt");

/// One of so many request pairs is for validation.
const REQUESTS_VAL: usize = 4;

/// One of so many families is.
const FAMILIES_VAL: usize = 8;

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
    /// The same prompts in other words, and beside them what each was; those that a dress does not fit are left out. Every
    /// dressing serves both classes alike, so that none tells of harm.
    fn dressed(&self, dress: Dress) -> (Self, Self) {
        let put = |(number, prompt): (usize, &String)| match dress {
            Dress::Plain => Some(prompt.clone()),
            Dress::Longer => Some(around(DRESSINGS, number).replace(FIELD, prompt)),
            Dress::Bypass => Some(around(BYPASSES, number).replace(FIELD, prompt)),
            Dress::Question => question(prompt, number),
        };
        let each = |prompts: &[String]| -> (Vec<String>, Vec<String>) {
            let fitting = prompts.iter().enumerate().filter_map(|one| Some((put(one)?, one.1.clone())));
            fitting.unzip()
        };
        let (pseudo_harmful, plain_pseudo_harmful) = each(&self.pseudo_harmful);
        let (harmful, plain_harmful) = each(&self.harmful);
        (Self { pseudo_harmful, harmful }, Self { pseudo_harmful: plain_pseudo_harmful, harmful: plain_harmful })
    }
}

/// The dressing of this number, over and over.
fn around(dressings: &str, number: usize) -> &str {
    dressings.lines().nth(number % dressings.lines().count()).unwrap_or(FIELD)
}

/// The prompts of one source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PromptsOf {
    /// Whose they are.
    pub source: SourceName,
    /// What a gate is fitted on.
    pub train: Both,
    /// For each of those a text that all prompts share that say the same, and that are left out together: the prompt without
    /// its dress; of a family its name.
    pub alike: Both,
    /// What it is chosen on.
    pub val: Both,
}

/// Every source of pseudo-harmful and harmful prompts that a run has: its own, the bundled ones, the bundled contrast and
/// request pairs; then all of them in longer requests, without which a gate learns that long and personal requests are
/// pseudo-harmful ones, all of them with a bypass, without which it opens for whoever claims to mean no harm, and those that
/// fit as longer questions, without which it takes the form of a request for what it is about; and the bundled families,
/// undressed, as they are many.
/// Bundled prompts keep to their split where they are the run's own; else those of the test split are train prompts
/// too, as nothing is measured on them. What is among the validation or test prompts of the run is left out.
pub fn sources(prompts: &Prompts) -> Vec<PromptsOf> {
    let own = |split| Both {
        pseudo_harmful: prompts.get(PromptClass::PseudoHarmful, split).to_vec(),
        harmful: prompts.get(PromptClass::Harmful, split).to_vec(),
    };
    let plain = |hand| SourceName { hand, dress: Dress::Plain };
    let of = |hand, train: Both, val| PromptsOf { source: plain(hand), alike: train.clone(), train, val };
    let mut all = vec![of(Hand::Own, own(Split::Train), own(Split::Val))];
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
        let of_class = |class, split| -> Vec<String> {
            let all = splits(split).into_iter().flat_map(|split| bundled.get(class, split));
            all.filter(|prompt| is_free(prompt)).cloned().collect()
        };
        let both = |split| Both {
            pseudo_harmful: of_class(PromptClass::PseudoHarmful, split),
            harmful: of_class(PromptClass::Harmful, split),
        };
        all.push(of(Hand::Bundled, both(Split::Train), both(Split::Val)));
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
    all.push(of(Hand::Contrasts, pairs(Split::Train), pairs(Split::Val)));
    let requests = |is_val: bool| {
        let [pseudo, harmful] = REQUESTS.map(str::lines);
        let pairs = pseudo.zip(harmful).enumerate();
        let (pseudo_harmful, harmful) = pairs
            .filter(|(at, (pseudo, harmful))| {
                (at % REQUESTS_VAL == REQUESTS_VAL - 1) == is_val && is_free(pseudo) && is_free(harmful)
            })
            .map(|(_, (pseudo, harmful))| (pseudo.to_string(), harmful.to_string()))
            .unzip();
        Both { pseudo_harmful, harmful }
    };
    all.push(of(Hand::Requests, requests(false), requests(true)));
    let dressed = |dress: Dress| {
        let each = all.iter().map(move |of| {
            let (train, alike) = of.train.dressed(dress);
            PromptsOf { source: SourceName { dress, ..of.source }, train, alike, val: of.val.dressed(dress).0 }
        });
        each.collect::<Vec<_>>()
    };
    let every = Dress::ALL.into_iter().flat_map(dressed).chain([of_families(is_free)]);
    every.filter(|of| !of.train.pseudo_harmful.is_empty() && !of.train.harmful.is_empty()).collect()
}

/// The bundled families; those that a run measures are left out.
fn of_families(is_free: impl Fn(&str) -> bool) -> PromptsOf {
    let source = SourceName { hand: Hand::Families, dress: Dress::Plain };
    let mut found = PromptsOf { source, train: Both::default(), alike: Both::default(), val: Both::default() };
    for (at, Family { name, pseudo_harmful, harmful }) in families().into_iter().enumerate() {
        let free = |requests: Vec<String>| requests.into_iter().filter(|request| is_free(request)).collect::<Vec<_>>();
        let (pseudo_harmful, harmful) = (free(pseudo_harmful), free(harmful));
        let both = if at % FAMILIES_VAL == FAMILIES_VAL - 1 {
            &mut found.val
        } else {
            found.alike.pseudo_harmful.extend(vec![name.clone(); pseudo_harmful.len()]);
            found.alike.harmful.extend(vec![name; harmful.len()]);
            &mut found.train
        };
        both.pseudo_harmful.extend(pseudo_harmful);
        both.harmful.extend(harmful);
    }
    found
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

    fn names(all: &[PromptsOf]) -> Vec<(Dress, Hand)> {
        all.iter().map(|of| (of.source.dress, of.source.hand)).collect()
    }

    /// These hands in each dress, and the families.
    fn each_dressed(hands: &[Hand]) -> Vec<(Dress, Hand)> {
        let dressed = Dress::ALL.into_iter().flat_map(|dress| hands.iter().map(move |hand| (dress, *hand)));
        dressed.chain([(Dress::Plain, Hand::Families)]).collect()
    }

    #[test]
    fn both_classes_are_dressed_alike() {
        assert!(DRESSINGS.lines().count() >= 20 && BYPASSES.lines().count() >= 12);
        assert!(DRESSINGS.lines().chain(BYPASSES.lines()).all(|line| line.matches(FIELD).count() == 1));
        let found = sources(&Prompts::bundled());
        let plain = &found[0].train;
        let around = |plain: &[String], dressed: &[String]| -> Vec<(String, String)> {
            let each = plain.iter().zip(dressed).map(|(plain, dressed)| dressed.split_once(plain.as_str()).unwrap());
            each.map(|(before, after)| (before.to_string(), after.to_string())).collect()
        };
        for PromptsOf { train, alike, .. } in &found {
            let sizes = |both: &Both| (both.pseudo_harmful.len(), both.harmful.len());
            assert_eq!(sizes(train), sizes(alike));
        }
        let asked = found.iter().find(|of| of.source.dress == Dress::Question).unwrap();
        assert!(
            asked.train.harmful.len() > 30 && asked.train.harmful.iter().all(|prompt| !plain.harmful.contains(prompt))
        );
        assert!(asked.alike.harmful.iter().all(|prompt| plain.harmful.contains(prompt)));
        let families = found.last().unwrap();
        let held_out = |both: &Both| both.pseudo_harmful.len().min(both.harmful.len());
        assert!(held_out(&families.train) > 500 && held_out(&families.val) >= 60);
        // a family of ten requests a class is left out as a whole
        for (requests, alike) in [
            (&families.train.pseudo_harmful, &families.alike.pseudo_harmful),
            (&families.train.harmful, &families.alike.harmful),
        ] {
            let names: HashSet<&String> = alike.iter().collect();
            assert!(alike.len() == requests.len() && 10 * names.len() == requests.len());
        }
        for dressed in [&found[3].train, &found[6].train] {
            let pseudo = around(&plain.pseudo_harmful, &dressed.pseudo_harmful);
            let harmful = around(&plain.harmful, &dressed.harmful);
            assert!(pseudo.iter().zip(&harmful).all(|(a, b)| a == b && a.0.len() + a.1.len() > 10));
        }
    }

    #[test]
    fn bundled_prompts_keep_their_split_where_they_are_the_runs_own() {
        let prompts = Prompts::bundled();
        let found = sources(&prompts);
        assert_eq!(names(&found), each_dressed(&[Hand::Own, Hand::Contrasts, Hand::Requests]));
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
        let hands = [Hand::Own, Hand::Bundled, Hand::Contrasts, Hand::Requests];
        let mut expected = each_dressed(&hands);
        // "hack 3" asks for nothing
        expected.retain(|name| *name != (Dress::Question, Hand::Own));
        assert_eq!(names(&found), expected);
        let count = |of: &PromptsOf| of.train.pseudo_harmful.len() + of.val.pseudo_harmful.len();
        let all = [known, CONTRASTS.lines().count(), REQUESTS[0].lines().count()];
        assert_eq!(found[1..4].iter().map(count).collect::<Vec<_>>(), all);
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

    #[test]
    fn request_pairs_are_split_and_occur_once() {
        let [pseudo, harmful] = REQUESTS.map(|text| text.lines().collect::<Vec<_>>());
        assert!(pseudo.len() == harmful.len() && pseudo.len() >= 80);
        let bundled = [
            PSEUDO_HARMFUL,
            CONTRASTS,
            include_str!("../../../fixtures/prompts/harmful.txt"),
            include_str!("../../../fixtures/prompts/harmless.txt"),
        ];
        let mut seen: HashSet<&str> = bundled.iter().flat_map(|text| text.lines()).collect();
        assert!(pseudo.iter().chain(&harmful).all(|line| seen.insert(line)), "a line occurs twice");
        let found = sources(&own(""));
        let pairs = found.iter().find(|of| of.source.hand == Hand::Requests).unwrap();
        assert_eq!(pairs.val.harmful.len(), harmful.len() / REQUESTS_VAL);
        assert!(pairs.val.harmful.iter().all(|prompt| !pairs.train.harmful.contains(prompt)));
    }
}
