//! `lancet sweep`.

use std::path::Path;

use lancet::error::Error;
use lancet::eval::policy::Limit;
use lancet::method::prompts::{PromptClass, Prompts, Split, SplitSizes};
use lancet::pipeline::running::Running;
use lancet::pipeline::sweep::{self, SweepOptions, Swept};
use lancet::pipeline::{self, direction_file};
use lancet::prompt_files;
use lancet::report::{Found, describe};

use super::args::{CrossSet, MethodArgs, MethodName, PromptArgs, SweepArgs};
use super::commands::{self, Context, Ending};
use super::measuring;
use super::method;
use super::runtime::load_runtime;
use super::ui::{self, Ui};

/// `lancet sweep`.
pub fn sweep(context: &Context, args: &SweepArgs) -> anyhow::Result<Ending> {
    let opened = commands::open(&args.model, &args.variant)?;
    if let Some(output) = &args.output {
        commands::refuse_existing(output)?;
        pipeline::check_new_folder(output)?;
    }
    let chat = commands::load_chat(&opened, &args.chat)?;
    let prompts = commands::load_prompts(&args.prompts, args.paper, &context.ui)?;
    let cross = cross_sets(&args.cross, &prompts, &args.prompts, &context.ui)?;
    let tokens = commands::refusal_tokens(&args.tokens, &chat)?;
    let runtime = load_runtime(context, &args.runtime)?;
    let guard = measuring::guard(&args.guard)?;
    measuring::note_too_few(context, &guard, &prompts);
    let (measured, seed) = (&args.measuring, args.prompts.seed);
    let guard_sets = measuring::guard_sets(measured, args.prompts.prompts.as_deref(), &guard.policy.guard_sets())?;
    let settings = measuring::settings(context, &opened, &chat, measured, &args.chat, guard_sets, seed)?;
    let method = MethodArgs {
        method: Some(MethodName::Wang),
        lambda: None,
        strength: None,
        add: 0.0,
        paper: args.paper,
        exhaustive: args.exhaustive,
        kl_threshold: args.kl_threshold,
    };
    let mut options = SweepOptions {
        lambdas: args.lambda.clone(),
        strengths: args.strength.clone(),
        alphas: args.add.clone(),
        rules: method::rules(&method, guard.policy.limit(Limit::HarmfulDrop).unwrap_or(1.0)),
        refusal_tokens: tokens,
        settings,
        cross: &cross,
        guard: &guard,
    };
    let batch = args.runtime.batch_size;
    let running = Running { runtime: &runtime, chat: &chat, prompts: &prompts, batch, cancelled: &context.cancelled };
    let swept = sweep::sweep(&running, &opened, &mut options, &context.ui)?;
    if let Some(output) = &args.output {
        write(output, &swept)?;
    }
    if context.json {
        ui::print_json(&swept.result)?;
    } else {
        ui::show(&describe::sweep(&swept.result))?;
    }
    Ok(if swept.result.recommended.is_some() { Ending::Done } else { Ending::Guarded })
}

/// The prompts with each other set in place of the pseudo-harmful ones.
fn cross_sets(
    sets: &[CrossSet],
    prompts: &Prompts,
    args: &PromptArgs,
    ui: &Ui,
) -> Result<Vec<(String, Prompts)>, Error> {
    let mut found: Vec<(String, Prompts)> = Vec::new();
    for CrossSet { name, file } in sets {
        if found.iter().any(|(known, _)| known == name) {
            return Err(Error::usage(format!("two sets are named `{name}`"), "give each `--cross` a name of its own"));
        }
        let parsed = prompt_files::load_file(file, PromptClass::PseudoHarmful, false)?;
        let sizes = SplitSizes { train: args.n_train, val: args.n_val, test: args.n_test };
        let all = prompts.with_pseudo_harmful(&parsed, sizes, args.seed)?;
        let count = |split| all.get(PromptClass::PseudoHarmful, split).len();
        let fitted = SplitSizes { train: count(Split::Train), val: count(Split::Val), test: count(Split::Test) };
        if fitted != sizes {
            ui.say(&format!(
                "note: `{name}` has {} prompts: {} train, {} val, {} test",
                parsed.prompts.len(),
                fitted.train,
                fitted.val,
                fitted.test
            ));
        }
        found.push((name.clone(), all));
    }
    Ok(found)
}

/// A new folder with `sweep.json` and a direction file for each setting.
fn write(output: &Path, swept: &Swept) -> Result<(), Error> {
    std::fs::create_dir_all(output).map_err(|e| {
        Error::failed_with(format!("cannot create `{}`: {e}", output.display()), "check the folder and its permissions")
    })?;
    for setting in &swept.settings {
        let path = output.join(format!("direction-{}.safetensors", setting.name));
        let found = Found::Select(setting.choice.result.clone());
        direction_file::save(&path, &setting.choice.edit, &found, &swept.model_sha256)?;
    }
    let json = serde_json::to_vec_pretty(&swept.result).expect("plain data");
    pipeline::write_whole(&output.join("sweep.json"), &json)
}
