//! A TOML file with options: its entries are put before the flags that were typed, so a flag beats it.

use std::ffi::OsString;
use std::path::Path;

use anyhow::{Context, bail};

/// The arguments of `command` from the file at `path`: `lambda = 0.5` is `--lambda=0.5`, `paper = true` is
/// `--paper`, `false` is nothing. Top-level entries hold for every command, a table for the command of its name.
pub fn arguments(path: &Path, command: &str) -> anyhow::Result<Vec<OsString>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read config `{}`", path.display()))?;
    let table: toml::Table = text.parse().with_context(|| format!("config `{}` is not valid TOML", path.display()))?;
    let mut out = Vec::new();
    let top = table.iter().filter(|(_, value)| !value.is_table());
    let own = table.get(command).and_then(|v| v.as_table()).into_iter().flatten();
    for (key, value) in top.chain(own) {
        let flag = key.replace('_', "-");
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
        out.push(format!("--{flag}={value}").into());
    }
    Ok(out)
}
