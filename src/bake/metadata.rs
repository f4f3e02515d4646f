//! The metadata entries that a bake adds, and what those of an output are worth: they are compared with what the plan
//! computes. What cannot be computed again must be of a known form, and nothing is ever decided by it.

use std::collections::HashSet;

use serde::Serialize;

use super::findings::{Finding, FindingKind};
use super::plan::{BakePlan, METADATA_PREFIX, VERSION_KEY};
use crate::onnx::Model;
use crate::onnx::proto::StringStringEntryProto;

/// Longest value of an entry that is not computed again.
const LONGEST: usize = 64;

/// What an output says of how it was made where that is not what the plan computes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Claim {
    /// The entry, without the prefix and the number of a later bake: `strength`.
    pub key: String,
    /// What the output says; `None` where it says nothing.
    pub said: Option<String>,
    /// What the plan computes; `None` where it has no such entry.
    pub computed: Option<String>,
}

/// The entries of an output held against those of the plan.
#[derive(Debug, Default)]
pub(super) struct Held {
    /// Entries that are missing, added, or of another value.
    pub findings: Vec<Finding>,
    /// The same as what is said and what is computed.
    pub claims: Vec<Claim>,
    /// Entries that were not compared with anything, one sentence each.
    pub unchecked: Vec<String>,
}

/// An entry that says where a direction came from, which the direction itself does not tell.
struct Free {
    key: &'static str,
    known: fn(&str) -> bool,
}

/// What `run` and `bake` write besides what a plan computes (`pipeline`): these keys with values of these forms, right
/// behind the hash of the direction. They are read by nobody.
const FREE: [Free; 5] = [
    Free { key: "lambda", known: |text| number(text).is_some_and(|v| (0.0..=1.0).contains(&v)) },
    Free { key: "layer", known: |text| text.parse::<u32>().is_ok_and(|n| n.to_string() == text) },
    Free { key: "position", known: |text| text.parse::<i32>().is_ok_and(|n| n < 0 && n.to_string() == text) },
    Free {
        key: "source_sha256",
        known: |text| text.len() == 64 && text.bytes().all(|b| b"0123456789abcdef".contains(&b)),
    },
    Free { key: GUARD, known: |text| GuardMark::ALL.iter().any(|mark| mark.as_str() == text) },
];

/// The entry that tells how the guard was passed by.
pub const GUARD: &str = "guard";

/// What a written model says of a guard that did not pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GuardMark {
    /// It failed, and the user overrode it.
    Forced,
    /// Nothing was measured that it could judge.
    NotMeasured,
}

impl GuardMark {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Forced, Self::NotMeasured];

    /// The value of the metadata entry.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Forced => "forced",
            Self::NotMeasured => "not measured",
        }
    }
}

/// A number as Rust writes it.
fn number(text: &str) -> Option<f64> {
    text.parse::<f64>().ok().filter(|v| v.is_finite() && v.to_string() == text)
}

/// The version of a program: `0.3.1`, `1.0.0-rc.2`.
fn is_version(text: &str) -> bool {
    let plain = |c: char| c.is_ascii_alphanumeric() || ".-+".contains(c);
    text.starts_with(|c: char| c.is_ascii_digit()) && text.len() <= LONGEST && text.chars().all(plain)
}

/// The key that an entry gets beside those that are taken: `metadata_props` may not repeat one. Takes it.
pub(super) fn fresh(taken: &mut HashSet<String>, key: &str) -> String {
    let stem = format!("{METADATA_PREFIX}{}", bare(key));
    let mut key = stem.clone();
    let mut n = 1;
    while !taken.insert(key.clone()) {
        n += 1;
        key = format!("{stem}.{n}");
    }
    key
}

/// The key of a further entry behind those that a model has.
pub fn further_key(model: &Model, key: &str) -> String {
    fresh(&mut keys(model), key)
}

/// The keys that a model has.
pub(super) fn keys(model: &Model) -> HashSet<String> {
    model.skeleton.metadata_props.iter().filter_map(|entry| entry.key.clone()).collect()
}

fn bare(key: &str) -> &str {
    key.strip_prefix(METADATA_PREFIX).unwrap_or(key)
}

/// The last entry of a key: a model that was baked before has older ones.
pub(super) fn own_metadata<'m>(model: &'m Model, key: &str) -> Option<&'m str> {
    let stem = format!("{METADATA_PREFIX}{key}");
    let ours = |found: &str| {
        let number = |rest: &str| rest.strip_prefix('.').is_some_and(|n| n.parse::<usize>().is_ok());
        found.strip_prefix(&stem).is_some_and(|rest| rest.is_empty() || number(rest))
    };
    let mut entries = model.skeleton.metadata_props.iter().rev();
    entries.find(|entry| entry.key.as_deref().is_some_and(ours)).and_then(|entry| entry.value.as_deref())
}

/// The key without prefix and number.
fn stem(key: &str) -> &str {
    let key = bare(key);
    match key.rsplit_once('.') {
        Some((stem, number)) if number.parse::<u32>().is_ok() => stem,
        _ => key,
    }
}

/// Holds `entries`, those of an output behind the ones of its base, against the plan's.
pub(super) fn hold(base: &Model, plan: &BakePlan, file: &str, entries: &[StringStringEntryProto]) -> Held {
    let mut held = Held::default();
    let mut taken = keys(base);
    // numbers of the free ones that have passed, which keep their order
    let mut seen: Vec<usize> = Vec::new();
    let mut wanted = plan.metadata.iter().peekable();
    // how many of the plan's own have passed: the free ones stand behind the first two
    let mut passed = 0;
    for entry in entries {
        let (key, value) = (entry.key.as_deref().unwrap_or(""), entry.value.as_deref().unwrap_or(""));
        if wanted.clone().any(|(k, _)| k == key) {
            while let Some((known, computed)) = wanted.next_if(|(k, _)| k != key) {
                held.differs(file, known, None, Some(computed));
                passed += 1;
            }
            let (_, computed) = wanted.next().expect("it is among them");
            passed += 1;
            taken.insert(key.to_string());
            if value == computed {
                continue;
            }
            if stem(key) == VERSION_KEY && is_version(value) {
                held.unchecked.push(format!(
                    "`{key}` says that Lancet {value} wrote the output, and this is {computed}: it was compared with \
                     what this version writes, whoever wrote it"
                ));
            } else {
                held.differs(file, key, Some(value), Some(computed));
            }
            continue;
        }
        let free = FREE.iter().position(|free| free.key == stem(key)).filter(|number| {
            let planned = plan.metadata.iter().any(|(k, _)| stem(k) == FREE[*number].key);
            // a guard that failed and was overridden is noted at the end, once the model was measured
            let place = passed == 2 || (passed == plan.metadata.len() && FREE[*number].key == GUARD);
            !planned && place && seen.last().is_none_or(|last| last < number)
        });
        match free {
            Some(number) if fresh(&mut taken, FREE[number].key) == key && (FREE[number].known)(value) => {
                seen.push(number);
            }
            _ => held.differs(file, key, Some(value), None),
        }
    }
    for (key, computed) in wanted {
        held.differs(file, key, None, Some(computed));
    }
    if !seen.is_empty() {
        let names: Vec<&str> = seen.iter().map(|number| FREE[*number].key).collect();
        held.unchecked.push(format!(
            "what the metadata says of how the direction was found and judged (`{}`): nothing depends on it",
            names.join("`, `")
        ));
    }
    held
}

impl Held {
    fn differs(&mut self, file: &str, key: &str, said: Option<&str>, computed: Option<&str>) {
        let shown = |text: &str| match text.char_indices().nth(LONGEST) {
            Some((end, _)) => format!("{}...", &text[..end]),
            None => text.to_string(),
        };
        let detail = match (said, computed) {
            (Some(said), Some(computed)) => {
                format!("it is `{}`, and the edit gives `{}`", shown(said), shown(computed))
            }
            (Some(said), None) => format!("it was added, with the value `{}`", shown(said)),
            (None, Some(computed)) => format!("it is missing; the edit gives `{}`", shown(computed)),
            (None, None) => return,
        };
        self.findings.push(Finding { kind: FindingKind::Metadata, file: file.into(), name: key.into(), detail });
        let own = |text: Option<&str>| text.map(shown);
        if key.starts_with(METADATA_PREFIX) {
            self.claims.push(Claim { key: stem(key).into(), said: own(said), computed: own(computed) });
        }
    }
}
