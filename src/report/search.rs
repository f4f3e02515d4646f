//! How the setting of a run was found.

use serde::{Deserialize, Serialize};

use super::number::percent;
use super::{ClassTable, GateSetting, GuardResult, Interval};
use crate::method::refine::Refinement;

/// What sets a row of a search apart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SearchSetting {
    /// The model as it is.
    #[default]
    Unchanged,
    /// One direction is ablated at every write (Wang et al. 2025).
    Wang {
        /// Lambda of the partial orthogonalisation, 0 to 1.
        lambda: f64,
        /// Share of the component that is ablated, above 0 and at most 1.
        strength: f64,
        /// Factor of the true-refusal vector that is added besides; 0 adds nothing.
        alpha: f64,
        /// Token position that the direction comes from, negative; `None` where no candidate was left.
        position: Option<i64>,
        /// Its layer; `None` where no candidate was left.
        layer: Option<usize>,
    },
    /// What a further method makes of the direction that is selected.
    Refined {
        /// The method: `rank:2`, `sra`, `ace`, `layers`.
        method: Refinement,
        /// Lambda of the partial orthogonalisation, 0 to 1.
        lambda: f64,
        /// Token position that the direction comes from, negative; `None` where no candidate was left.
        position: Option<i64>,
        /// Its layer; `None` where no candidate was left.
        layer: Option<usize>,
    },
    /// The true-refusal direction itself is ablated at every write (Arditi et al. 2024): a baseline, which should lose
    /// true refusal.
    Refusal {
        /// Token position that the direction comes from, negative; `None` where no candidate was left.
        position: Option<i64>,
        /// Its layer; `None` where no candidate was left.
        layer: Option<usize>,
    },
    /// The model as it is, with a system prompt that asks it to answer what only looks harmful: a baseline, which no file
    /// holds.
    SystemPrompt {
        /// The whole system prompt.
        text: String,
    },
    /// A gated ablation; `None` where there is no gate, or none holds by its scores.
    Gate {
        /// The setting of the gates.
        gates: Option<GateSetting>,
    },
}

impl std::fmt::Display for SearchSetting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Unchanged => f.write_str("unchanged"),
            Self::Wang { lambda, strength, alpha, .. } => {
                write!(f, "wang, lambda {lambda}")?;
                if *strength != 1.0 {
                    write!(f, ", strength {strength}")?;
                }
                match *alpha == 0.0 {
                    true => Ok(()),
                    false => write!(f, ", addition {alpha}"),
                }
            }
            Self::Refined { method, lambda, .. } => write!(f, "{method}, lambda {lambda}"),
            Self::Refusal { .. } => f.write_str("true refusal ablated"),
            Self::SystemPrompt { .. } => f.write_str("system prompt"),
            Self::Gate { gates: None } => f.write_str("gate"),
            Self::Gate { gates: Some(GateSetting { layers, open, alpha }) } => {
                let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
                write!(f, "gate, layers {}, open for {}, factor {alpha}", layers.join(" "), percent(*open))
            }
        }
    }
}

impl SearchSetting {
    /// Whether a file can hold it.
    #[must_use]
    pub fn is_edit(&self) -> bool {
        !matches!(self, Self::Unchanged | Self::SystemPrompt { .. })
    }

    /// The setting as its files are named: `wang-lambda-0.5`, `wang-lambda-1-strength-0.5-addition-2`, `gate-16-18-alpha-1`.
    /// Settings of one search have different names.
    #[must_use]
    pub fn name(&self) -> String {
        match self {
            Self::Unchanged => "unchanged".into(),
            Self::Wang { lambda, strength, alpha, .. } => {
                let mut name = format!("wang-lambda-{lambda}");
                if *strength != 1.0 {
                    name += &format!("-strength-{strength}");
                }
                if *alpha != 0.0 {
                    name += &format!("-addition-{alpha}");
                }
                name
            }
            Self::Refined { method, lambda, .. } => {
                format!("{}-lambda-{lambda}", method.to_string().replace(':', "-"))
            }
            Self::Refusal { .. } => "refusal".into(),
            Self::SystemPrompt { .. } => "system-prompt".into(),
            Self::Gate { gates: None } => "gate".into(),
            Self::Gate { gates: Some(GateSetting { layers, alpha, .. }) } => {
                let layers: Vec<String> = layers.iter().map(ToString::to_string).collect();
                format!("gate-{}-alpha-{alpha}", layers.join("-"))
            }
        }
    }
}

/// Harmful validation prompts of every source whose harmful prompts the model tells apart, by their refusal scores: the run's
/// own, bundled ones, and all of them dressed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Lost {
    /// Prompts that the unchanged model refuses and the setting does not.
    pub lost: usize,
    /// All prompts, refused or not.
    pub total: usize,
    /// Lower confidence bound of the share that is lost; `None` where there are no prompts.
    pub at_least: Option<f64>,
}

/// One setting, measured with the edit at run time; on validation prompts, but for the sweep of a run.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchRow {
    /// What sets it apart.
    pub setting: SearchSetting,
    /// Prompts, a class each; empty where nothing was measured.
    pub classes: ClassTable,
    /// Harmful refusal rate inside the wrappers; `None` where none were asked.
    pub wrapped_refusal_rate: Option<f64>,
    /// Wilson's 95 % interval of it.
    pub wrapped_interval: Option<Interval>,
    /// Mean harmless KL at the first response position, in nats.
    pub harmless_kl: Option<f64>,
    /// What it loses of harmful validation prompts of every source; `None` for the unchanged model, and where nothing was
    /// measured.
    pub lost: Option<Lost>,
    /// The policy's judgement, with what is lost by scores and, on validation prompts, without its bounds; `None` for the
    /// unchanged model, and where nothing was measured.
    pub guard: Option<GuardResult>,
    /// Why nothing was measured: all candidates were discarded, say.
    pub failure: Option<String>,
}

impl SearchRow {
    /// Whether it keeps to the policy and refuses fewer pseudo-harmful prompts than the unchanged model does.
    #[must_use]
    pub fn holds(&self, unchanged: &Self) -> bool {
        self.guard.as_ref().is_some_and(|guard| guard.passed) && self.gains(unchanged)
    }

    /// Marks a setting that no file can hold: it then does not keep to the policy.
    pub fn cannot_be_baked(&mut self, why: &str) {
        if let Some(guard) = &mut self.guard {
            guard.passed = false;
            guard.reasons.push(format!("it cannot be baked: {why}"));
        }
    }

    /// Whether it was measured and refuses fewer pseudo-harmful prompts than the unchanged model does.
    #[must_use]
    pub fn gains(&self, unchanged: &Self) -> bool {
        let refused = |row: &Self| row.classes.pseudo_harmful.refused;
        self.guard.is_some() && refused(self) < refused(unchanged)
    }
}

/// The search for a setting (method `auto`): settings of every method, on validation prompts, under the policy.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SearchResult {
    /// Every setting; the first row is the unchanged model.
    pub rows: Vec<SearchRow>,
    /// Index into `rows` of what was baked; `None` where nothing holds.
    pub chosen: Option<usize>,
    /// Where nothing holds: what came closest, and what it lost.
    pub refusal: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_tell_settings_apart() {
        let wang =
            |lambda, strength, alpha| SearchSetting::Wang { lambda, strength, alpha, position: None, layer: None };
        let gate = |layers: &[usize], alpha| SearchSetting::Gate {
            gates: Some(GateSetting { layers: layers.into(), open: 0.02, alpha }),
        };
        for (setting, name, words) in [
            (SearchSetting::Unchanged, "unchanged", "unchanged"),
            (wang(0.5, 1.0, 0.0), "wang-lambda-0.5", "wang, lambda 0.5"),
            (
                wang(1.0, 0.75, -2.0),
                "wang-lambda-1-strength-0.75-addition--2",
                "wang, lambda 1, strength 0.75, addition -2",
            ),
            (
                SearchSetting::Refined {
                    method: Refinement::Groups { count: 2 },
                    lambda: 1.0,
                    position: None,
                    layer: None,
                },
                "rank-2-lambda-1",
                "rank:2, lambda 1",
            ),
            (SearchSetting::Refusal { position: None, layer: None }, "refusal", "true refusal ablated"),
            (gate(&[18], 2.0), "gate-18-alpha-2", "gate, layers 18, open for 2.0 %, factor 2"),
            (gate(&[16, 18], 1.0), "gate-16-18-alpha-1", "gate, layers 16 18, open for 2.0 %, factor 1"),
        ] {
            assert_eq!((setting.name().as_str(), setting.to_string().as_str()), (name, words));
        }
    }

    #[test]
    fn what_cannot_be_baked_does_not_hold() {
        let row = |refused| {
            let mut row =
                SearchRow { guard: Some(GuardResult { passed: true, ..Default::default() }), ..Default::default() };
            row.classes.pseudo_harmful.refused = refused;
            row
        };
        let (unchanged, mut better) = (row(3), row(1));
        assert!(better.holds(&unchanged) && !row(3).holds(&unchanged));
        better.cannot_be_baked("a merged decoder takes no addition");
        assert!(!better.holds(&unchanged) && better.gains(&unchanged));
        assert_eq!(better.guard.unwrap().reasons, ["it cannot be baked: a merged decoder takes no addition"]);
    }
}
