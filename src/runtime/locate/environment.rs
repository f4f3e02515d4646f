//! What the search reads from its surroundings: variables, folders, the Pythons to ask.

use super::search::{absolute, system_folders};
use super::{CACHE_VARIABLE, LocateError, PYTHON_VARIABLE};

use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

/// What the search reads from its surroundings, as values, so that a test can give its own.
#[derive(Debug, Clone, Default)]
pub struct Environment {
    variables: HashMap<String, OsString>,
    pub(super) executable: Option<PathBuf>,
    pub(super) system_folders: Vec<PathBuf>,
    user_cache: Option<PathBuf>,
    asks_python: bool,
}

impl Environment {
    /// Those of this process.
    pub fn process() -> Self {
        let variables = std::env::vars_os()
            .filter_map(|(name, value)| {
                let name = name.into_string().ok()?;
                Some((if cfg!(windows) { name.to_ascii_uppercase() } else { name }, value))
            })
            .collect();
        Self {
            variables,
            executable: std::env::current_exe().ok(),
            system_folders: system_folders(),
            user_cache: dirs::cache_dir(),
            asks_python: true,
        }
    }

    /// One that knows no variable, no executable and no system folder, and asks no Python unless
    /// `LANCET_PYTHON` is set.
    pub fn isolated() -> Self {
        Self::default()
    }

    /// The same with one more variable.
    #[must_use]
    pub fn with_variable(mut self, name: &str, value: impl Into<OsString>) -> Self {
        self.variables.insert(name.to_owned(), value.into());
        self
    }

    /// The same with another executable.
    #[must_use]
    pub fn with_executable(mut self, path: impl Into<PathBuf>) -> Self {
        self.executable = Some(path.into());
        self
    }

    /// The same with one more system library folder.
    #[must_use]
    pub fn with_system_folder(mut self, path: impl Into<PathBuf>) -> Self {
        self.system_folders.push(path.into());
        self
    }

    /// Lancet's cache: `LANCET_CACHE`, else `lancet` in the user's cache folder.
    pub fn cache_dir(&self) -> Result<PathBuf, LocateError> {
        match self.variable(CACHE_VARIABLE) {
            Some(folder) => Ok(absolute(Path::new(folder))),
            None => self.user_cache.as_ref().map(|folder| folder.join("lancet")).ok_or(LocateError::NoCacheFolder),
        }
    }

    /// A variable that is set and not empty.
    pub(super) fn variable(&self, name: &str) -> Option<&OsStr> {
        self.variables.get(name).map(OsString::as_os_str).filter(|value| !value.is_empty())
    }

    /// The Pythons to try, in order.
    pub(super) fn pythons(&self) -> Vec<OsString> {
        match self.variable(PYTHON_VARIABLE) {
            Some(python) => vec![python.to_owned()],
            None if !self.asks_python => Vec::new(),
            None if cfg!(windows) => vec!["python".into(), "py".into()],
            None => vec!["python3".into(), "python".into()],
        }
    }
}

/// Lancet's cache folder in this process (see [`Environment::cache_dir`]); it may not exist yet.
pub fn cache_dir() -> Result<PathBuf, LocateError> {
    Environment::process().cache_dir()
}
