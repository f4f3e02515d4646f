//! Assembles prompt sets: from files or from those that come with the program, checked for overlaps, drawn by
//! the seed.

use std::collections::{HashMap, HashSet};

use sha2::{Digest, Sha256};

use super::text::normalised;
use super::{
    MOST_TRAIN, Overlap, OverlapPolicy, PUBLISHED_SEED, ParsedFile, PerClass, Place, PromptClass, PromptError,
    PromptFile, PromptOrigin, PromptSet, PromptSource, Prompts, PythonRandom, Split, SplitSizes, parse,
};

/// The version of the bundled prompts.
pub const BUNDLED_VERSION: &str = include_str!("../../../fixtures/prompts/VERSION").trim_ascii();

/// The order in which the published code draws, and our harmless test after it.
const PUBLISHED_ORDER: [(Split, PromptClass); 9] = [
    (Split::Train, PromptClass::PseudoHarmful),
    (Split::Train, PromptClass::Harmless),
    (Split::Train, PromptClass::Harmful),
    (Split::Val, PromptClass::PseudoHarmful),
    (Split::Val, PromptClass::Harmless),
    (Split::Val, PromptClass::Harmful),
    (Split::Test, PromptClass::PseudoHarmful),
    (Split::Test, PromptClass::Harmful),
    (Split::Test, PromptClass::Harmless),
];

/// The classes in the order in which one generator splits one file a class.
const CLASS_ORDER: [PromptClass; 3] = [PromptClass::PseudoHarmful, PromptClass::Harmless, PromptClass::Harmful];

impl Prompts {
    fn empty(source: PromptSource, files: Vec<PromptFile>) -> Self {
        Self {
            sets: PerClass::default(),
            origin: PromptOrigin { source, files, seed: None, sizes: None, overlaps: Vec::new(), dropped: Vec::new() },
        }
    }

    /// Puts together files that hold one split of one class each ([`PromptFile::split`] says which; a file
    /// without one counts as train), with all their prompts. [`Prompts::sample`] chooses among them.
    ///
    /// # Errors
    /// If a prompt is in two places and `overlap` forbids it ([`OverlapPolicy::RefuseInSample`] is left to
    /// [`Prompts::refuse_overlap`]), or dropping such prompts leaves a split empty.
    pub fn from_split_files(
        source: PromptSource,
        mut files: Vec<ParsedFile>,
        overlap: OverlapPolicy,
    ) -> Result<Self, PromptError> {
        files.sort_by_key(|parsed| (parsed.file.split, parsed.file.class));
        let mut found = overlaps_of(&files);
        let mut dropped = Vec::new();
        match overlap {
            OverlapPolicy::Refuse => refuse(found.iter().map(|hit| &hit.overlap))?,
            OverlapPolicy::RefuseInSample | OverlapPolicy::Keep => {}
            OverlapPolicy::Drop => {
                refuse(found.iter().map(|hit| &hit.overlap).filter(|o| o.first.class != o.second.class))?;
                for hit in std::mem::take(&mut found).into_iter().rev() {
                    let parsed = &mut files[hit.file];
                    parsed.prompts.remove(hit.index);
                    parsed.rows.remove(hit.index);
                    parsed.file.prompts -= 1;
                    dropped.push(hit.overlap);
                }
                dropped.reverse();
            }
        }
        let mut prompts = Self::empty(source, files.iter().map(|parsed| parsed.file.clone()).collect());
        prompts.origin.overlaps = found.into_iter().map(|hit| hit.overlap).collect();
        prompts.origin.dropped = dropped;
        for parsed in files {
            let (class, split) = (parsed.file.class, parsed.file.split.unwrap_or(Split::Train));
            if parsed.prompts.is_empty() {
                return Err(PromptError::NothingLeft { class, split });
            }
            prompts.sets.get_mut(class).get_mut(split).extend(parsed.prompts);
        }
        Ok(prompts)
    }

    /// Splits one file a class: the seed shuffles each (pseudo-harmful, harmless, harmful, from one
    /// generator), then train takes from the front, then val, then test; [`SplitSizes::fit`] says how many.
    ///
    /// # Errors
    /// If a file has too few prompts, train or val is given none, or a prompt is in two classes and
    /// `overlap` is not [`OverlapPolicy::Keep`].
    pub fn from_class_files(
        files: [ParsedFile; 3],
        sizes: SplitSizes,
        seed: u64,
        overlap: OverlapPolicy,
    ) -> Result<Self, PromptError> {
        Self::split(PromptSource::Files, files, sizes, seed, overlap)
    }

    fn split(
        source: PromptSource,
        files: [ParsedFile; 3],
        sizes: SplitSizes,
        seed: u64,
        overlap: OverlapPolicy,
    ) -> Result<Self, PromptError> {
        let found = overlaps_of(&files);
        if overlap != OverlapPolicy::Keep {
            refuse(found.iter().map(|hit| &hit.overlap))?;
        }
        let mut prompts = Self::empty(source, files.iter().map(|parsed| parsed.file.clone()).collect());
        prompts.origin.overlaps = found.into_iter().map(|hit| hit.overlap).collect();
        prompts.origin.seed = Some(seed);
        prompts.origin.sizes = Some(sizes);
        let mut random = PythonRandom::new(seed);
        for class in CLASS_ORDER {
            for parsed in files.iter().filter(|parsed| parsed.file.class == class) {
                // Repeated prompts would end in two splits.
                let mut seen = HashSet::new();
                let unique: Vec<&String> = parsed.prompts.iter().filter(|p| seen.insert(normalised(p))).collect();
                let fitted = sizes.fit(&parsed.file.name, unique.len())?;
                let mut shuffled = random.sample_indices(unique.len(), unique.len()).into_iter();
                for split in Split::ALL {
                    let chosen = shuffled.by_ref().take(fitted.get(split));
                    prompts.sets.get_mut(class).get_mut(split).extend(chosen.map(|index| unique[index].clone()));
                }
            }
        }
        let of =
            |class| files.iter().filter(move |parsed| parsed.file.class == class).flat_map(|parsed| &parsed.prompts);
        prompts.keep_further(of);
        Ok(prompts)
    }

    /// The prompts that come with the program, split with the published seed and sizes.
    pub fn bundled() -> Self {
        Self::bundled_with(SplitSizes::default(), PUBLISHED_SEED)
            .expect("the bundled prompts are part of the program and a test splits them")
    }

    /// The prompts that come with the program, split as [`Prompts::from_class_files`] splits any file.
    ///
    /// # Errors
    /// If train or val is given none.
    pub fn bundled_with(sizes: SplitSizes, seed: u64) -> Result<Self, PromptError> {
        let files = [
            ("bundled harmful.txt", include_str!("../../../fixtures/prompts/harmful.txt"), PromptClass::Harmful),
            (
                "bundled pseudo_harmful.txt",
                include_str!("../../../fixtures/prompts/pseudo_harmful.txt"),
                PromptClass::PseudoHarmful,
            ),
            ("bundled harmless.txt", include_str!("../../../fixtures/prompts/harmless.txt"), PromptClass::Harmless),
        ]
        .map(|(name, text, class)| {
            parse(name, text, class, false).expect("the bundled prompts are part of the program and a test parses them")
        });
        let source = PromptSource::Bundled { version: BUNDLED_VERSION.to_owned() };
        Self::split(source, files, sizes, seed, OverlapPolicy::Refuse)
    }

    /// Chooses `sizes` prompts a class with `random.sample` of Python seeded with `seed`, one generator going
    /// through the published order (see the [module](super)). A set with fewer gives all it has, shuffled.
    /// Prompts that a seed has split already ([`PromptOrigin::seed`]) need no second choice.
    #[must_use]
    pub fn sample(&self, sizes: SplitSizes, seed: u64) -> Self {
        let mut random = PythonRandom::new(seed);
        let mut sampled = Self::empty(self.origin.source.clone(), self.origin.files.clone());
        for (split, class) in PUBLISHED_ORDER {
            let all = self.get(class, split);
            *sampled.sets.get_mut(class).get_mut(split) = random
                .sample_indices(all.len(), sizes.get(split))
                .into_iter()
                .map(|index| all[index].clone())
                .collect();
        }
        sampled.keep_further(|class| self.get(class, Split::Train).iter());
        sampled.origin.seed = Some(seed);
        sampled.origin.sizes = Some(sizes);
        sampled.origin.dropped.clone_from(&self.origin.dropped);
        let has = |place: &Place, wanted: &str| {
            place.split.is_none_or(|split| {
                let set = sampled.get(place.class, split);
                set.iter().any(|prompt| normalised(prompt) == wanted)
            })
        };
        let left: Vec<Overlap> = self
            .origin
            .overlaps
            .iter()
            .filter(|overlap| {
                let wanted = normalised(&overlap.prompt);
                has(&overlap.first, &wanted) && has(&overlap.second, &wanted)
            })
            .cloned()
            .collect();
        sampled.origin.overlaps = left;
        sampled
    }

    /// The same prompts with another pseudo-harmful set: one file, shuffled by the seed and split as
    /// [`Prompts::from_class_files`] does. Prompts that are harmful or harmless ones here already are left out.
    ///
    /// # Errors
    /// If the file has too few prompts, or train or val is given none.
    pub fn with_pseudo_harmful(&self, file: &ParsedFile, sizes: SplitSizes, seed: u64) -> Result<Self, PromptError> {
        let mut seen: HashSet<String> = HashSet::new();
        for class in [PromptClass::Harmful, PromptClass::Harmless] {
            seen.extend(Split::ALL.iter().flat_map(|&split| self.get(class, split)).map(|prompt| normalised(prompt)));
        }
        let unique: Vec<&String> = file.prompts.iter().filter(|p| seen.insert(normalised(p))).collect();
        let fitted = sizes.fit(&file.file.name, unique.len())?;
        let mut shuffled = PythonRandom::new(seed).sample_indices(unique.len(), unique.len()).into_iter();
        let mut prompts = self.clone();
        prompts.sets.pseudo_harmful = PromptSet::default();
        for split in Split::ALL {
            let chosen = shuffled.by_ref().take(fitted.get(split));
            prompts.sets.pseudo_harmful.get_mut(split).extend(chosen.map(|index| unique[index].clone()));
        }
        let harmful = std::mem::take(&mut prompts.sets.harmful.further);
        prompts.keep_further(|class| match class {
            PromptClass::PseudoHarmful => file.prompts.iter(),
            _ => harmful.iter(),
        });
        Ok(prompts)
    }

    /// Keeps the prompts of `all` that no class has in any split as further train prompts, in their order.
    fn keep_further<'a, I: Iterator<Item = &'a String>>(&mut self, all: impl Fn(PromptClass) -> I) {
        let drawn = PromptClass::ALL.iter().flat_map(|class| Split::ALL.map(|split| self.get(*class, split)));
        let mut seen: HashSet<String> = drawn.flatten().map(|prompt| normalised(prompt)).collect();
        for class in [PromptClass::PseudoHarmful, PromptClass::Harmful] {
            let room = MOST_TRAIN.saturating_sub(self.get(class, Split::Train).len());
            let left = all(class).filter(|prompt| seen.insert(normalised(prompt))).take(room);
            self.sets.get_mut(class).further = left.cloned().collect();
        }
    }

    /// An error if a prompt is in two splits of a class or in two classes, as far as
    /// [`PromptOrigin::overlaps`] records it.
    ///
    /// # Errors
    /// If there is one; the error shows one.
    pub fn refuse_overlap(&self) -> Result<(), PromptError> {
        refuse(self.origin.overlaps.iter())
    }

    /// SHA-256 (hex) of the prompts: every class and split with its prompts in order, each length-prefixed.
    /// Where they come from does not count, so two ways to the same prompts agree.
    pub fn fingerprint(&self) -> String {
        let mut hasher = Sha256::new();
        let mut put = |text: &str| {
            hasher.update((text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        };
        put("lancet prompts 1");
        for class in PromptClass::ALL {
            for split in Split::ALL {
                let prompts = self.get(class, split);
                put(class.as_str());
                put(split.as_str());
                put(&prompts.len().to_string());
                prompts.iter().for_each(|prompt| put(prompt));
            }
        }
        for class in PromptClass::ALL {
            let further = &self.class(class).further;
            if !further.is_empty() {
                put(class.as_str());
                put("further");
                further.iter().for_each(|prompt| put(prompt));
            }
        }
        hasher.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }
}

/// An overlap and the file and index of its second place.
struct Hit {
    overlap: Overlap,
    file: usize,
    index: usize,
}

/// Prompts that are in two files, in the order of the second place. Repeats within a file do not count.
fn overlaps_of(files: &[ParsedFile]) -> Vec<Hit> {
    let place = |file: usize, index: usize| {
        let parsed: &ParsedFile = &files[file];
        Place {
            class: parsed.file.class,
            split: parsed.file.split,
            at: parsed.rows.get(index).map(|&row| (parsed.file.name.clone(), row)),
        }
    };
    let mut seen: HashMap<String, (usize, usize)> = HashMap::new();
    let mut found = Vec::new();
    for (file, parsed) in files.iter().enumerate() {
        for (index, prompt) in parsed.prompts.iter().enumerate() {
            let &mut (first_file, first_index) = seen.entry(normalised(prompt)).or_insert((file, index));
            if first_file != file {
                found.push(Hit {
                    overlap: Overlap {
                        prompt: files[first_file].prompts[first_index].clone(),
                        first: place(first_file, first_index),
                        second: place(file, index),
                    },
                    file,
                    index,
                });
            }
        }
    }
    found
}

/// An error if there is an overlap; two classes are worse than two splits.
fn refuse<'a>(overlaps: impl Iterator<Item = &'a Overlap>) -> Result<(), PromptError> {
    let (classes, splits): (Vec<&Overlap>, Vec<&Overlap>) =
        overlaps.partition(|overlap| overlap.first.class != overlap.second.class);
    if let Some(&example) = classes.first() {
        return Err(PromptError::ClassOverlap { count: classes.len(), example: Box::new(example.clone()) });
    }
    match splits.first() {
        Some(&example) => Err(PromptError::SplitOverlap { count: splits.len(), example: Box::new(example.clone()) }),
        None => Ok(()),
    }
}

#[cfg(test)]
#[path = "assemble_tests.rs"]
mod tests;
