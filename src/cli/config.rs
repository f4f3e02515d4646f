//! A TOML file with options: its entries are put before the flags that were typed, so a flag beats it.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow, bail};
use clap::CommandFactory;
use lancet::eval::toml_error;
use lancet::{Error, files};

use super::Cli;

/// The commands that have an option of this long name.
fn takers(flag: &str) -> Vec<String> {
    let mut cli = Cli::command();
    cli.build();
    cli.get_subcommands()
        .filter(|c| c.get_arguments().any(|a| a.get_long() == Some(flag)))
        .map(|c| c.get_name().to_string())
        .collect()
}

/// The config file among the typed arguments, the command, and the place right after the command's name.
pub fn named_in(typed: &[OsString]) -> Option<(PathBuf, String, usize)> {
    let known: Vec<String> = Cli::command().get_subcommands().map(|c| c.get_name().to_string()).collect();
    let mut file = None;
    let mut command = None;
    let mut at = 1;
    while at < typed.len() {
        let text = typed[at].to_string_lossy();
        if text == "--config" {
            file = typed.get(at + 1).map(PathBuf::from);
            at += 1;
        } else if let Some(path) = text.strip_prefix("--config=") {
            file = Some(PathBuf::from(path));
        } else if command.is_none() && known.contains(&text.to_string()) {
            command = Some((text.to_string(), at + 1));
        }
        at += 1;
    }
    let (name, place) = command?;
    Some((file?, name, place))
}

/// The arguments of `command` from the file at `path`: `lambda = 0.5` is `--lambda=0.5`, `paper = true` is
/// `--paper`, `false` is nothing. Top-level entries hold for every command, a table for the command of its name.
pub fn arguments(path: &Path, command: &str) -> anyhow::Result<Vec<OsString>> {
    let text = files::read_text(path, files::MAX_SETTINGS)
        .with_context(|| format!("cannot read config `{}`", path.display()))?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        let words = toml_error::words(&text, &error);
        anyhow!("config `{}` is not valid TOML: {words}", path.display())
    })?;
    let mut out = Vec::new();
    let top = table.iter().filter(|(_, value)| !value.is_table());
    let own = table.get(command).and_then(|v| v.as_table()).into_iter().flatten();
    for (key, value) in top.chain(own) {
        let flag = key.replace('_', "-");
        match takers(&flag) {
            takers if takers.iter().any(|c| c == command) => {}
            takers if takers.is_empty() => bail!(Error::usage(
                format!("config `{}`: no option is called `{key}`", path.display()),
                format!("`lancet {command} --help` lists the options"),
            )),
            // an option of other commands may stand at the top for them
            _ if table.contains_key(key) => continue,
            _ => bail!(Error::usage(
                format!("config `{}`: `{command}` has no option `{key}`", path.display()),
                format!("`lancet {command} --help` lists the options"),
            )),
        }
        let value = match value {
            toml::Value::Boolean(true) if flag != "thinking" => {
                out.push(format!("--{flag}").into());
                continue;
            }
            toml::Value::Boolean(false) if flag != "thinking" => continue,
            toml::Value::String(s) => s.clone(),
            toml::Value::Integer(i) => i.to_string(),
            toml::Value::Float(f) => f.to_string(),
            toml::Value::Boolean(b) => b.to_string(),
            toml::Value::Array(items) => items
                .iter()
                .map(|v| v.as_str().map_or_else(|| v.to_string(), str::to_string))
                .collect::<Vec<_>>()
                .join(","),
            other => bail!("config `{}`: `{key}` is {}, which no option takes", path.display(), other.type_str()),
        };
        // the parser of arguments quotes what it refuses as it is
        if value.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
            bail!("config `{}`: `{key}` holds a control character", path.display());
        }
        out.push(format!("--{flag}={value}").into());
    }
    Ok(out)
}
