//! One error for the whole crate: each stage's own, wrapped with the kind that decides the exit code.

use crate::lm::Refusal;

/// What kind of failure this is; the command line turns it into an exit code.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Understood and refused, or failed on the way (exit code 1).
    Failed,
    /// Wrong usage or environment (exit code 2).
    Usage,
    /// The guard refused to publish (exit code 3).
    Guard,
}

/// Any error of this crate.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The model file.
    #[error(transparent)]
    Onnx(#[from] crate::onnx::OnnxError),
    /// The graph is not understood.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// Tokenizer or chat template.
    #[error(transparent)]
    Chat(#[from] crate::chat::ChatError),
    /// Prompt sets.
    #[error(transparent)]
    Prompts(#[from] crate::method::prompts::PromptError),
    /// The direction.
    #[error(transparent)]
    Direction(#[from] crate::edit::DirectionError),
    /// The edit.
    #[error(transparent)]
    Edit(#[from] crate::edit::EditError),
    /// Writing the edited model.
    #[error(transparent)]
    Bake(#[from] crate::bake::BakeError),
    /// Running a model.
    #[error(transparent)]
    Runtime(#[from] crate::runtime::RuntimeError),
    /// Finding or installing ONNX Runtime.
    #[error(transparent)]
    Locate(#[from] crate::runtime::locate::LocateError),
    /// Refusal patterns.
    #[error(transparent)]
    Patterns(#[from] crate::eval::patterns::PatternError),
    /// Jailbreak wrappers.
    #[error(transparent)]
    Wrappers(#[from] crate::eval::wrappers::WrapperError),
    /// The guard's policy.
    #[error(transparent)]
    Policy(#[from] crate::eval::policy::PolicyError),
    /// The external judge.
    #[error(transparent)]
    Judge(#[from] crate::judge::JudgeError),
    /// The guard.
    #[error("{message}")]
    Guard {
        /// What was measured, and against which limit.
        message: String,
    },
    /// One of several files.
    #[error("in `{file}`")]
    In {
        /// The file, relative to its package.
        file: String,
        /// What is wrong there.
        source: Box<Error>,
    },
    /// Anything else, with its kind.
    #[error("{message}")]
    Other {
        /// Its kind.
        kind: Kind,
        /// What happened.
        message: String,
        /// What to do.
        hint: Option<String>,
    },
}

impl Error {
    /// Wrong usage or environment.
    pub fn usage(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Other { kind: Kind::Usage, message: message.into(), hint: Some(hint.into()) }
    }

    /// A failure of an otherwise right call.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::Other { kind: Kind::Failed, message: message.into(), hint: None }
    }

    /// A failure with advice.
    pub fn failed_with(message: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::Other { kind: Kind::Failed, message: message.into(), hint: Some(hint.into()) }
    }

    /// This error, said to be of one of several files.
    #[must_use]
    pub fn of_file(self, file: impl Into<String>) -> Self {
        Self::In { file: file.into(), source: Box::new(self) }
    }

    /// The kind.
    pub fn kind(&self) -> Kind {
        use crate::bake::BakeError;
        use crate::runtime::RuntimeError;
        match self {
            Self::Guard { .. } => Kind::Guard,
            Self::In { source, .. } => source.kind(),
            Self::Other { kind, .. } => *kind,
            Self::Chat(_) | Self::Prompts(_) | Self::Locate(_) | Self::Direction(_) | Self::Edit(_) => Kind::Usage,
            Self::Patterns(_) | Self::Wrappers(_) | Self::Policy(_) | Self::Judge(_) => Kind::Usage,
            Self::Bake(BakeError::OutputExists { .. } | BakeError::Direction { .. }) => Kind::Usage,
            Self::Runtime(RuntimeError::Library { .. } | RuntimeError::Provider { .. }) => Kind::Usage,
            Self::Onnx(_) | Self::Refused(_) | Self::Bake(_) | Self::Runtime(_) => Kind::Failed,
        }
    }

    /// The error with everything that caused it, in one line.
    #[must_use]
    pub fn chain(&self) -> String {
        let mut words = self.to_string();
        let mut source = std::error::Error::source(self);
        while let Some(cause) = source {
            words.push_str(&format!(": {cause}"));
            source = cause.source();
        }
        words
    }

    /// What to do about it.
    pub fn hint(&self) -> Option<String> {
        match self {
            Self::Onnx(e) => e.hint(),
            Self::Refused(e) => Some(e.hint.clone()),
            Self::Chat(e) => e.hint(),
            Self::Prompts(e) => e.hint(),
            Self::Direction(e) => e.hint(),
            Self::Edit(e) => e.hint(),
            Self::Bake(e) => e.hint(),
            Self::Runtime(e) => e.hint(),
            Self::Locate(e) => e.hint(),
            Self::Patterns(e) => e.hint(),
            Self::Wrappers(e) => e.hint(),
            Self::Policy(e) => e.hint(),
            Self::Judge(e) => e.hint(),
            Self::In { source, .. } => source.hint(),
            Self::Guard { .. } => Some(
                "raise lambda (1 keeps all of the true-refusal direction), try another `--method`, or look at the candidates in the report; \
                 `--force` publishes anyway and says so in the provenance"
                    .into(),
            ),
            Self::Other { hint, .. } => hint.clone(),
        }
    }
}
