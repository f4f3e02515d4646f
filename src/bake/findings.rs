//! What differs between an output and what a bake makes of its base, by name.

use serde::{Deserialize, Serialize};

/// Differences that are listed; of more, the number is told.
pub const MOST: usize = 100;

/// What kind of thing differs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum FindingKind {
    /// A tensor of a model.
    Tensor,
    /// A node, an attribute of one, or the order of nodes.
    Node,
    /// A graph input, output or declared value.
    Value,
    /// A local function.
    Function,
    /// IR version, opset, producer or another field of the model.
    Model,
    /// A metadata entry.
    Metadata,
    /// An external data file, or a byte of one.
    ExternalData,
    /// A file of the output that the base lacks.
    AddedFile,
    /// A file of the base that the output lacks.
    MissingFile,
    /// A file whose bytes differ.
    ChangedFile,
    /// A symbolic link, or a special file.
    Link,
    /// A file whose permissions differ.
    Mode,
}

/// One difference that the edit does not explain.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Finding {
    /// What differs.
    pub kind: FindingKind,
    /// The file, relative to the folder of the model, or to the output.
    pub file: String,
    /// The tensor, node or entry; empty where the file itself differs.
    pub name: String,
    /// How it differs, in one sentence.
    pub detail: String,
}

impl std::fmt::Display for Finding {
    /// In one sentence.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { kind, file, name, detail } = self;
        let thing = match kind {
            FindingKind::Tensor => "tensor",
            FindingKind::Node => "node",
            FindingKind::Value => "value",
            FindingKind::Function => "function",
            FindingKind::Metadata => "metadata entry",
            FindingKind::ExternalData => "external data",
            FindingKind::Model => {
                return match name.is_empty() {
                    true => write!(f, "`{file}`: {detail}"),
                    false => write!(f, "the model's {name} in `{file}`: {detail}"),
                };
            }
            FindingKind::AddedFile
            | FindingKind::MissingFile
            | FindingKind::ChangedFile
            | FindingKind::Link
            | FindingKind::Mode => return write!(f, "`{file}` {detail}"),
        };
        match name.is_empty() {
            true => write!(f, "`{file}`: {detail}"),
            false => write!(f, "{thing} `{name}` in `{file}`: {detail}"),
        }
    }
}

/// Differences in the order in which they were found, each thing once.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Findings {
    /// The first 100 of them.
    pub listed: Vec<Finding>,
    /// How many more there are.
    pub more: usize,
}

impl Findings {
    /// Takes one in, unless the same thing is listed already.
    pub fn add(&mut self, finding: Finding) {
        let same =
            |known: &Finding| (known.kind, &known.file, &known.name) == (finding.kind, &finding.file, &finding.name);
        if self.listed.iter().any(same) {
            return;
        }
        match self.listed.len() < MOST {
            true => self.listed.push(finding),
            false => self.more += 1,
        }
    }

    /// Takes others in.
    pub fn extend(&mut self, findings: impl IntoIterator<Item = Finding>) {
        findings.into_iter().for_each(|finding| self.add(finding));
    }

    /// Takes those of another file in.
    pub fn merge(&mut self, other: Self) {
        self.more += other.more;
        self.extend(other.listed);
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.listed.is_empty() && self.more == 0
    }
}
