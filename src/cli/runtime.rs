//! ONNX Runtime: found, installed, loaded.

use indicatif::{ProgressBar, ProgressStyle};
use lancet::error::Error;
use lancet::runtime::locate::{self, Environment, Flavour, InstallEvent, Located, Options};
use lancet::runtime::session::{Device, Runtime};
use std::io::IsTerminal;

use super::args::{DeviceArg, RuntimeAction, RuntimeArgs, RuntimeOptions, SpinArg};
use super::commands::{Context, Ending};
use super::ui::{self, Ui};

/// Finds ONNX Runtime, installing it if there is none, and loads it.
pub fn load_runtime(context: &Context, options: &RuntimeOptions) -> Result<Runtime, Error> {
    let device = match options.device {
        DeviceArg::Auto => Device::Auto,
        DeviceArg::Cpu => Device::Cpu,
        DeviceArg::Cuda => Device::Cuda,
    };
    let flavour = if device == Device::Cpu { Flavour::Cpu } else { Flavour::Cuda };
    let environment = Environment::process();
    let search = Options { explicit: options.ort_lib.as_deref(), flavour, environment: &environment };
    let found = match locate::locate(&search)? {
        Some(found) => found,
        None if options.no_install => locate::require(&search)?,
        None => {
            context.ui.say("ONNX Runtime was not found; installing it into Lancet's cache (once)");
            install(&context.ui, if device == Device::Cuda { Flavour::Cuda } else { Flavour::Cpu })?
        }
    };
    let memory = options.cuda_memory.map(|gigabytes| (gigabytes * 1e9) as usize);
    let runtime = Runtime::load(&found.path, device, options.threads)?.with_cuda_memory(memory);
    let runtime = match options.spin {
        SpinArg::Auto => runtime,
        SpinArg::On => runtime.with_spinning(true),
        SpinArg::Off => runtime.with_spinning(false),
    };
    if let Some(reason) = &runtime.fallback {
        context.ui.say(&format!("CUDA is not used: {reason}"));
    }
    Ok(runtime)
}

/// ONNX Runtime where one is installed; nothing is installed for it. One that does not load is no reason to stop.
pub fn at_hand(options: &RuntimeOptions) -> Result<Option<Runtime>, Error> {
    let environment = Environment::process();
    let search = Options { explicit: options.ort_lib.as_deref(), flavour: Flavour::Cpu, environment: &environment };
    match locate::locate(&search)? {
        Some(found) => Ok(Runtime::load(&found.path, Device::Cpu, options.threads).ok()),
        None => Ok(None),
    }
}

fn install(ui: &Ui, flavour: Flavour) -> Result<Located, Error> {
    let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
    bar.set_style(ProgressStyle::with_template("{spinner} {bytes} {bytes_per_sec} {msg}").expect("a valid template"));
    let found = locate::install(flavour, &mut |event| match event {
        InstallEvent::Command(command) => ui.say(&format!("running {command}")),
        InstallEvent::Line(line) => bar.set_message(line.chars().take(70).collect::<String>()),
        InstallEvent::Bytes { done, .. } => bar.set_position(done),
        InstallEvent::Verifying(path) => bar.set_message(format!("checking {}", path.display())),
        InstallEvent::Unpacking(name) => bar.set_message(format!("unpacking {name}")),
    })?;
    bar.finish_and_clear();
    ui.say(&format!("installed `{}`", found.path.display()));
    Ok(found)
}

/// `lancet runtime`.
pub fn runtime(context: &Context, args: &RuntimeArgs) -> anyhow::Result<Ending> {
    match &args.action {
        RuntimeAction::Install { cuda } => {
            let found = install(&context.ui, if *cuda { Flavour::Cuda } else { Flavour::Cpu })?;
            if context.json {
                ui::print_json(&found)?;
            } else {
                ui::print(&format!("{}\n", found.path.display()))?;
            }
        }
        RuntimeAction::Info { ort_lib, cuda } => {
            let flavour = if *cuda { Flavour::Cuda } else { Flavour::Cpu };
            let environment = Environment::process();
            let search = Options { explicit: ort_lib.as_deref(), flavour, environment: &environment };
            let used = locate::locate(&search).map_err(Error::from)?;
            let candidates = locate::candidates(&search);
            let loaded = used.as_ref().map(|found| {
                Runtime::load(&found.path, Device::Cpu, 0).map(|_| Runtime::build_info()).map_err(|e| e.to_string())
            });
            if context.json {
                ui::print_json(&serde_json::json!({
                    "used": used,
                    "loads": loaded.as_ref().map(Result::is_ok),
                    "build": loaded.as_ref().and_then(|l| l.as_ref().ok()),
                    "error": loaded.as_ref().and_then(|l| l.as_ref().err()),
                    "candidates": candidates,
                }))?;
            } else {
                let mut text = String::new();
                for candidate in &candidates {
                    let located = &candidate.located;
                    let is_used = used.as_ref().is_some_and(|u| u.path == located.path);
                    let mark = if is_used { "*" } else { " " };
                    let version = located.version.as_deref().unwrap_or("unknown version");
                    text.push_str(&format!("{mark} {} ({version}, {})", located.path.display(), located.source));
                    if let Some(reason) = &candidate.skipped {
                        text.push_str(&format!(" skipped: {reason}"));
                    }
                    text.push('\n');
                }
                match &loaded {
                    Some(Ok(build)) => text.push_str(&format!("loads: {build}\n")),
                    Some(Err(error)) => text.push_str(&format!("does not load: {error}\n")),
                    None => text.push_str("no ONNX Runtime was found; `lancet runtime install` installs one\n"),
                }
                ui::print(&text)?;
            }
            if !matches!(loaded, Some(Ok(_))) {
                return Err(Error::usage("no usable ONNX Runtime was found", "run `lancet runtime install`").into());
            }
        }
    }
    Ok(Ending::Done)
}
