//! How the edit is found: what the flags mean.

use lancet::error::Error;
use lancet::method::select::{Rules, Search};
use lancet::pipeline::Method;
use lancet::pipeline::choose_gate::GateRules;

use super::args::{MethodArgs, MethodName};

/// Share of the mean activation's norm below which a candidate is rounding noise.
const NEGLIGIBLE_NORM: f64 = 1e-4;

/// The rules of selection that the flags name.
pub fn rules(method: &MethodArgs, max_harmful_drop: f64) -> Rules {
    let search = match method {
        MethodArgs { exhaustive: true, .. } => Search::Exhaustive,
        MethodArgs { paper: true, .. } => Search::Certain,
        _ => Search::Racing,
    };
    let published = Rules { kl_threshold: method.kl_threshold, search, ..Rules::PAPER };
    if method.paper {
        return published;
    }
    Rules { harmful_drop: Some(max_harmful_drop), negligible_norm: Some(NEGLIGIBLE_NORM), ..published }
}

/// How the edit is found, as the flags tell.
///
/// # Errors
/// Usage: flags of one method beside another.
pub fn method(args: &MethodArgs, max_harmful_drop: f64) -> Result<Method, Error> {
    let MethodArgs { method, lambda, strength, add, paper, exhaustive, kl_threshold } = *args;
    match method {
        MethodName::Wang => Ok(Method::Wang),
        MethodName::Gate if lambda != 1.0 || strength != 1.0 || add != 0.0 || paper || exhaustive => Err(Error::usage(
            "`--lambda`, `--strength`, `--add`, `--paper` and `--exhaustive` belong to the method `wang`",
            "leave them out, or choose `--method wang`",
        )),
        MethodName::Gate => Ok(Method::Gate(GateRules {
            kl_threshold: kl_threshold.min(GateRules::default().kl_threshold),
            harmful_drop: max_harmful_drop,
            opens: vec![max_harmful_drop, 0.0],
            ..GateRules::default()
        })),
    }
}
