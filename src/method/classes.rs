//! The three classes of prompts, one value for each of them, the sources that prompts come from, and the sets that serve the
//! guard alone.

use std::fmt;

use serde::{Deserialize, Serialize};

/// What a prompt is to a well-behaved model.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PromptClass {
    /// To be refused.
    #[default]
    Harmful,
    /// To be answered, but it looks harmful and so may be refused falsely.
    PseudoHarmful,
    /// To be answered, and looks it.
    Harmless,
}

impl PromptClass {
    /// Every class.
    pub const ALL: [Self; 3] = [Self::Harmful, Self::PseudoHarmful, Self::Harmless];

    /// Every class in the order of tables: the one whose refusals should change first.
    pub const OF_TABLES: [Self; 3] = [Self::PseudoHarmful, Self::Harmful, Self::Harmless];

    /// The name in files and JSON: `harmful`, `pseudo_harmful`, `harmless`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Harmful => "harmful",
            Self::PseudoHarmful => "pseudo_harmful",
            Self::Harmless => "harmless",
        }
    }

    /// The word in prose: harmful, pseudo-harmful, harmless.
    pub fn word(self) -> &'static str {
        match self {
            Self::PseudoHarmful => "pseudo-harmful",
            other => other.as_str(),
        }
    }
}

impl fmt::Display for PromptClass {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.word())
    }
}

/// A set of prompts that serves the guard beside the three classes: refusals that have to stay, put in a way in which an
/// edit loses them first. Nothing is fitted or chosen on it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum GuardSet {
    /// Harmful prompts that are worded like a pseudo-harmful one each, and differ from it in what they are about.
    #[default]
    Contrasts,
    /// Harmful prompts in other languages than English.
    Languages,
    /// Conversations whose last turn is harmful after harmless ones.
    Turns,
    /// Harmless prompts that the system prompt or the user orders to refuse.
    Ordered,
    /// Harmful prompts at the start or the end of a long harmless text.
    Long,
}

impl GuardSet {
    /// Every set, in the order of tables.
    pub const ALL: [Self; 5] = [Self::Contrasts, Self::Languages, Self::Turns, Self::Ordered, Self::Long];

    /// The name in files and JSON: `contrasts`, `languages`, `turns`, `ordered`, `long`.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Contrasts => "contrasts",
            Self::Languages => "languages",
            Self::Turns => "turns",
            Self::Ordered => "ordered",
            Self::Long => "long",
        }
    }

    /// What its prompts are, as people read it: unsafe contrasts, other languages.
    #[must_use]
    pub fn words(self) -> &'static str {
        match self {
            Self::Contrasts => "unsafe contrasts",
            Self::Languages => "other languages",
            Self::Turns => "several turns",
            Self::Ordered => "ordered refusals",
            Self::Long => "long prompts",
        }
    }

    /// What its prompts would be to a model that nobody had ordered anything.
    #[must_use]
    pub fn class(self) -> PromptClass {
        match self {
            Self::Ordered => PromptClass::Harmless,
            Self::Contrasts | Self::Languages | Self::Turns | Self::Long => PromptClass::Harmful,
        }
    }
}

impl fmt::Display for GuardSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.words())
    }
}

/// Who wrote the prompts of a source.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Hand {
    /// They are the prompts of the run.
    #[default]
    Own,
    /// They come with the program, where the run has others.
    Bundled,
    /// Bundled pairs that differ in what they are about alone: a pseudo-harmful prompt, and its unsafe contrast.
    Contrasts,
    /// Bundled pairs of requests about the same dangerous matter, of which one may be answered.
    Requests,
    /// Bundled families of requests that are worded alike and differ in what they are about.
    Families,
}

/// What is put around every prompt of a source, the same for both classes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Dress {
    /// Nothing.
    #[default]
    Plain,
    /// Words of a longer request that say nothing of harm.
    Longer,
    /// Words that claim that the request is harmless, or forbid to turn it down.
    Bypass,
    /// Words of a question that asks for the same.
    Question,
}

impl Dress {
    /// All, in the order of tables.
    pub const ALL: [Self; 4] = [Self::Plain, Self::Longer, Self::Bypass, Self::Question];
}

/// What a source holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SourceName {
    /// Who wrote its prompts.
    pub hand: Hand,
    /// What is put around each of them.
    pub dress: Dress,
}

impl std::fmt::Display for SourceName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self.hand {
            Hand::Own => "the run's own",
            Hand::Bundled => "bundled",
            Hand::Contrasts => "contrast pairs",
            Hand::Requests => "request pairs",
            Hand::Families => "families",
        })?;
        match self.dress {
            Dress::Plain => Ok(()),
            Dress::Longer => f.write_str(", longer"),
            Dress::Bypass => f.write_str(", with a bypass"),
            Dress::Question => f.write_str(", as a question"),
        }
    }
}

/// One value for each class.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(rename = "PerClass_of_{T}"))]
pub struct PerClass<T> {
    /// Of prompts that are to be refused.
    pub harmful: T,
    /// Of prompts that are to be answered and look harmful.
    pub pseudo_harmful: T,
    /// Of prompts that are to be answered and look it.
    pub harmless: T,
}

impl<T> PerClass<T> {
    /// What `value` gives for each class, in the order of [`PromptClass::ALL`].
    pub fn from_fn(mut value: impl FnMut(PromptClass) -> T) -> Self {
        Self::from_array(PromptClass::ALL.map(&mut value))
    }

    /// The same where a value may fail.
    ///
    /// # Errors
    /// The first that `value` gives.
    pub fn try_from_fn<E>(mut value: impl FnMut(PromptClass) -> Result<T, E>) -> Result<Self, E> {
        Ok(Self {
            harmful: value(PromptClass::Harmful)?,
            pseudo_harmful: value(PromptClass::PseudoHarmful)?,
            harmless: value(PromptClass::Harmless)?,
        })
    }

    /// The values of an array in the order of [`PromptClass::ALL`], as files keep them.
    pub fn from_array([harmful, pseudo_harmful, harmless]: [T; 3]) -> Self {
        Self { harmful, pseudo_harmful, harmless }
    }

    /// As an array in the order of [`PromptClass::ALL`].
    pub fn into_array(self) -> [T; 3] {
        [self.harmful, self.pseudo_harmful, self.harmless]
    }

    /// The value of a class.
    pub fn get(&self, class: PromptClass) -> &T {
        match class {
            PromptClass::Harmful => &self.harmful,
            PromptClass::PseudoHarmful => &self.pseudo_harmful,
            PromptClass::Harmless => &self.harmless,
        }
    }

    /// The value of a class, to be changed.
    pub fn get_mut(&mut self, class: PromptClass) -> &mut T {
        match class {
            PromptClass::Harmful => &mut self.harmful,
            PromptClass::PseudoHarmful => &mut self.pseudo_harmful,
            PromptClass::Harmless => &mut self.harmless,
        }
    }

    /// Every class with its value, in the order of [`PromptClass::ALL`].
    pub fn iter(&self) -> impl Iterator<Item = (PromptClass, &T)> {
        PromptClass::ALL.into_iter().map(|class| (class, self.get(class)))
    }

    /// Every class with its value, in the order of tables.
    pub fn rows(&self) -> [(PromptClass, &T); 3] {
        PromptClass::OF_TABLES.map(|class| (class, self.get(class)))
    }

    /// What `change` makes of each value.
    pub fn map<U>(self, mut change: impl FnMut(T) -> U) -> PerClass<U> {
        PerClass {
            harmful: change(self.harmful),
            pseudo_harmful: change(self.pseudo_harmful),
            harmless: change(self.harmless),
        }
    }

    /// The same values, borrowed.
    pub fn as_ref(&self) -> PerClass<&T> {
        PerClass { harmful: &self.harmful, pseudo_harmful: &self.pseudo_harmful, harmless: &self.harmless }
    }
}
