//! How the edit is found: what the flags mean.

use lancet::chat::Chat;
use lancet::error::Error;
use lancet::method::refine::{Refinement, UnknownRefinement};
use lancet::method::select::{Rules, ScoreBy, Search};
use lancet::pipeline::Method;
use lancet::pipeline::choose_gate::GateRules;
use lancet::pipeline::collect::RefusalTokens;
use lancet::pipeline::settings::SearchRules;

use super::args::{MethodArgs, ScoreName, TokenArgs};

/// How the edit is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MethodName {
    /// Settings of `wang` and `gate` are tried on validation prompts, and the best within the policy is taken.
    Auto,
    /// One direction is ablated at every write (Wang et al. 2025).
    Wang,
    /// Refusal is taken off at one layer, where a prompt lies near known ones that only look harmful.
    Gate,
    /// What a further method makes of the direction that `wang` selects.
    Refined(Refinement),
}

impl std::str::FromStr for MethodName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Ok(match text {
            "auto" => Self::Auto,
            "wang" => Self::Wang,
            "gate" => Self::Gate,
            _ => Self::Refined(
                text.parse().map_err(|error: UnknownRefinement| format!("{error}, nor `auto`, `wang` or `gate`"))?,
            ),
        })
    }
}

/// What `--method` takes.
pub const METHODS: &str =
    "How the edit is found (docs/methods.md). If not given: `auto` for `run` and `demo`, `wang` for \
    `select` and wherever `--lambda`, `--strength`, `--add`, `--paper`, `--exhaustive`, `--score` or `--sweep` pin a \
    setting of it

Possible values:
- auto: Settings of wang and gate are tried on validation prompts, and the best within the policy is taken
- wang: One direction is ablated at every write (Wang et al. 2025)
- rank:K: A direction for each of K groups of pseudo-harmful prompts is ablated
- probes:K: K directions that tell pseudo-harmful from harmless prompts, one after another, are ablated
- sra: The direction loses what abilities have of it
- ace: What is ablated is replaced by what harmless prompts have there
- layers: Only writes of layers that matter are ablated
- va: At one layer the decision to answer is made to follow the judgement of harm
- gate: Refusal is taken off at one layer, where a prompt lies near known ones that only look harmful";

/// Share of the mean activation's norm below which a candidate is rounding noise.
const NEGLIGIBLE_NORM: f64 = 1e-4;

/// Lambdas that a search tries, the published one first.
const LAMBDAS: [f64; 3] = [1.0, 0.5, 0.0];

/// The rules of selection that the flags name.
pub fn rules(method: &MethodArgs, max_harmful_drop: f64) -> Rules {
    let search = match method {
        MethodArgs { exhaustive: true, .. } => Search::Exhaustive,
        MethodArgs { paper: true, .. } => Search::Certain,
        _ => Search::Racing,
    };
    let score = match method.score {
        ScoreName::Tokens => ScoreBy::Tokens,
        ScoreName::Cosmic => ScoreBy::Cosmic,
    };
    let published = Rules { kl_threshold: method.kl_threshold, search, score, ..Rules::PAPER };
    if method.paper {
        return published;
    }
    Rules { harmful_drop: Some(max_harmful_drop), negligible_norm: Some(NEGLIGIBLE_NORM), ..published }
}

/// Whether a setting of the method `wang` is pinned.
fn pins_wang(args: &MethodArgs) -> bool {
    let MethodArgs { lambda, strength, add, paper, exhaustive, score, .. } = *args;
    lambda.is_some() || strength.is_some() || add != 0.0 || paper || exhaustive || score != ScoreName::Tokens
}

/// Whether a setting is given that further methods, which start from `wang`, do not take over.
fn only_of_wang(args: &MethodArgs) -> bool {
    args.add != 0.0 || args.paper || args.score != ScoreName::Tokens
}

/// How `run` finds the edit, as the flags tell; `sweeps` where further lambdas are asked for.
///
/// # Errors
/// Usage: flags of one method beside another.
pub fn method(args: &MethodArgs, max_harmful_drop: f64, sweeps: bool) -> Result<Method, Error> {
    let pinned = pins_wang(args) || sweeps;
    match args.method {
        Some(MethodName::Wang) => Ok(Method::Wang),
        None if pinned => Ok(Method::Wang),
        Some(MethodName::Refined(_)) if only_of_wang(args) || sweeps => Err(only_wang()),
        Some(MethodName::Refined(how)) => Ok(Method::Refined(how)),
        Some(MethodName::Gate | MethodName::Auto) if pinned => Err(another()),
        Some(MethodName::Gate) => Ok(Method::Gate(gates(args, max_harmful_drop))),
        None | Some(MethodName::Auto) => Ok(Method::Auto(SearchRules {
            lambdas: LAMBDAS.to_vec(),
            strengths: vec![1.0],
            alphas: vec![0.0],
            rules: rules(args, max_harmful_drop),
            refinements: Vec::new(),
            gate: Some(gates(args, max_harmful_drop)),
            refusal: false,
        })),
    }
}

/// How `select` finds the edit. It answers no prompts and so cannot search.
#[derive(Debug, Clone, PartialEq)]
pub enum SelectMethod {
    /// A direction, and what a further method makes of it.
    Direction(Option<Refinement>),
    /// Gates.
    Gate(GateRules),
}

/// How `select` finds the edit, as the flags tell.
///
/// # Errors
/// Usage: flags of one method beside another, and the method `auto`.
pub fn of_select(args: &MethodArgs, max_harmful_drop: f64) -> Result<SelectMethod, Error> {
    match args.method {
        None | Some(MethodName::Wang) => Ok(SelectMethod::Direction(None)),
        Some(MethodName::Refined(_)) if only_of_wang(args) => Err(only_wang()),
        Some(MethodName::Refined(how)) => Ok(SelectMethod::Direction(Some(how))),
        Some(MethodName::Gate) if pins_wang(args) => Err(another()),
        Some(MethodName::Gate) => Ok(SelectMethod::Gate(gates(args, max_harmful_drop))),
        Some(MethodName::Auto) => Err(Error::usage(
            "`select` scores candidates of one method and answers no prompts, so it cannot search over methods",
            "choose another method, or let `lancet run` find the setting",
        )),
    }
}

/// The rules of gates.
pub fn gates(args: &MethodArgs, max_harmful_drop: f64) -> GateRules {
    let default = GateRules::default();
    GateRules {
        kl_threshold: args.kl_threshold.min(default.kl_threshold),
        harmful_drop: max_harmful_drop,
        opens: GateRules::opens(max_harmful_drop),
        ..default
    }
}

fn only_wang() -> Error {
    Error::usage(
        "`--add`, `--paper`, `--score` and `--sweep` belong to the method `wang` alone",
        "leave them out, or choose `--method wang`",
    )
}

fn another() -> Error {
    Error::usage(
        "`--lambda`, `--strength`, `--add`, `--paper`, `--exhaustive`, `--score` and `--sweep` belong to the method `wang`",
        "leave them out, or choose `--method wang`",
    )
}

/// The refusal tokens that the flags name.
pub fn refusal_tokens(args: &TokenArgs, chat: &Chat) -> Result<RefusalTokens, Error> {
    let Some(list) = &args.refusal_tokens else { return Ok(RefusalTokens::Automatic) };
    if list.trim() == "none" {
        return Ok(RefusalTokens::Given(Vec::new()));
    }
    let mut ids = Vec::new();
    for part in list.split(',').filter(|p| !p.trim().is_empty()) {
        let id = match part.trim().parse::<u32>() {
            Ok(id) if (id as usize) < chat.vocab_size() => id,
            Ok(id) => {
                return Err(Error::usage(
                    format!("refusal token {id} is outside the vocabulary of {}", chat.vocab_size()),
                    "give ids of this model's tokenizer, or words",
                ));
            }
            Err(_) => chat.first_token_after_prompt(part.trim())?,
        };
        if !ids.contains(&id) {
            ids.push(id);
        }
    }
    if ids.is_empty() {
        return Err(Error::usage(
            "`--refusal-tokens` is empty",
            "give the first words of the model's refusals: `\"I,As\"`",
        ));
    }
    Ok(RefusalTokens::Given(ids))
}
