//! What can go wrong between a model's tokenizer files and a prompt of token ids.

use std::io;
use std::path::PathBuf;

/// Failure to load a tokenizer or chat template, or to use them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ChatError {
    /// No folder holds a `tokenizer.json`.
    #[error("no `tokenizer.json` in {}", folders(searched))]
    TokenizerMissing {
        /// Folders that were searched, in order.
        searched: Vec<PathBuf>,
        /// A tokenizer in a form that is not read, where one was found (`tokenizer.model`, ..).
        unreadable: Option<PathBuf>,
    },
    /// The `tokenizer.json` does not describe a tokenizer.
    #[error("`{}` is not a usable tokenizer: {reason}", path.display())]
    TokenizerInvalid {
        /// The file.
        path: PathBuf,
        /// What the tokenizers library says.
        reason: String,
    },
    /// A file cannot be read.
    #[error("cannot read `{}`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// A file is larger than any real one of its kind.
    #[error("`{}` holds more than {limit} bytes", path.display())]
    FileTooLarge {
        /// The file.
        path: PathBuf,
        /// The most that is read.
        limit: u64,
    },
    /// A configuration file is not JSON.
    #[error("`{}` is not valid JSON", path.display())]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why.
        #[source]
        source: serde_json::Error,
    },
    /// A configuration file is JSON of the wrong shape.
    #[error("`{field}` in `{}` should be {expected}, not {got}", path.display())]
    JsonShape {
        /// The file.
        path: PathBuf,
        /// The entry.
        field: String,
        /// What it should be.
        expected: &'static str,
        /// What it is.
        got: &'static str,
    },
    /// No chat template was found.
    #[error("no chat template in {}", folders(searched))]
    TemplateMissing {
        /// Folders that were searched, in order.
        searched: Vec<PathBuf>,
    },
    /// The template is longer than any real one.
    #[error("the chat template in {origin} is {bytes} bytes long, more than {limit}")]
    TemplateTooLong {
        /// Where the template is from.
        origin: String,
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The template is not Jinja.
    #[error("the chat template in {origin} does not parse at line {line}: {reason}")]
    TemplateSyntax {
        /// Where the template is from.
        origin: String,
        /// Line in the template, from 1.
        line: usize,
        /// What the template engine says.
        reason: String,
    },
    /// The template called `raise_exception`.
    #[error("the chat template in {origin} refused the conversation: {message}")]
    TemplateRaised {
        /// Where the template is from.
        origin: String,
        /// The message of the template.
        message: String,
    },
    /// The template failed while it rendered.
    #[error("the chat template in {origin} failed at line {line}: {reason}")]
    TemplateFailed {
        /// Where the template is from.
        origin: String,
        /// Line in the template, from 1; 0 where unknown.
        line: usize,
        /// What the template engine says.
        reason: String,
    },
    /// The template takes more time or memory than any real one.
    #[error("the chat template in {origin} was stopped: {reason}")]
    TemplateUnbounded {
        /// Where the template is from.
        origin: String,
        /// What it takes too much of.
        reason: String,
    },
    /// The tokenizer multiplies a text's length.
    #[error("`{}` is not a usable tokenizer: {reason}", path.display())]
    TokenizerUnbounded {
        /// The file.
        path: PathBuf,
        /// What it does too much of.
        reason: String,
    },
    /// A prompt is longer than any model's context.
    #[error("a prompt of {bytes} bytes is longer than {limit}")]
    PromptTooLong {
        /// Its length.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// The template renders the same with and without the system prompt.
    #[error("the chat template in {origin} leaves the system prompt out")]
    SystemIgnored {
        /// Where the template is from.
        origin: String,
    },
    /// The template renders the same whatever the user says.
    #[error("the chat template in {origin} leaves the instruction out")]
    InstructionIgnored {
        /// Where the template is from.
        origin: String,
    },
    /// The instruction is empty.
    #[error("the instruction is empty")]
    EmptyInstruction,
    /// The opening of a response has no tokens.
    #[error("the response opening `{opening}` has no tokens")]
    EmptyOpening {
        /// The text.
        opening: String,
    },
    /// No token after the user's text is the same for every prompt.
    #[error("the chat template in {origin} has no post-instruction token positions (`k = 0`)")]
    NoPostInstruction {
        /// Where the template is from.
        origin: String,
    },
    /// The text cannot be tokenized.
    #[error("cannot tokenize a text of {bytes} bytes: {reason}")]
    Encode {
        /// Length of the text.
        bytes: usize,
        /// What the tokenizers library says.
        reason: String,
    },
    /// The token ids cannot be turned into text.
    #[error("cannot decode {tokens} tokens: {reason}")]
    Decode {
        /// How many there are.
        tokens: usize,
        /// What the tokenizers library says.
        reason: String,
    },
}

impl ChatError {
    /// What to do about it, where there is something.
    pub fn hint(&self) -> Option<String> {
        let hint = match self {
            Self::TokenizerMissing { unreadable: Some(path), .. } => format!(
                "`{}` alone is not enough: convert it with `AutoTokenizer.from_pretrained(DIR).save_pretrained(DIR)` \
                 of the Python package `transformers`, which writes `tokenizer.json`, \
                 or give the folder of one with `--tokenizer DIR`",
                path.display()
            ),
            Self::TokenizerMissing { unreadable: None, .. } => {
                "copy `tokenizer.json` and `tokenizer_config.json` from the model's original repository into the \
                 model's folder, or give their folder with `--tokenizer DIR`"
                    .to_owned()
            }
            Self::TokenizerInvalid { path, .. } => format!(
                "download `{}` again; a file of about 130 bytes is a Git LFS pointer, not the tokenizer",
                path.display()
            ),
            Self::FileTooLarge { .. } => "check that the path is the file it should be".to_owned(),
            Self::Json { .. } | Self::JsonShape { .. } => {
                "compare it with the file in the model's original repository".to_owned()
            }
            Self::TemplateMissing { .. } => {
                "give the model's Jinja template with `--chat-template FILE`; a base model that was never tuned to \
                 chat has none and does not refuse"
                    .to_owned()
            }
            Self::TokenizerUnbounded { .. } => "take `tokenizer.json` from the model's original repository".to_owned(),
            Self::PromptTooLong { .. } => "shorten the prompt in the prompt set".to_owned(),
            Self::TemplateTooLong { .. }
            | Self::TemplateUnbounded { .. }
            | Self::TemplateSyntax { .. }
            | Self::TemplateFailed { .. }
            | Self::InstructionIgnored { .. } => "give a corrected template with `--chat-template FILE`".to_owned(),
            Self::TemplateRaised { .. } => {
                "if the template does not take a system prompt, leave out `--system`; otherwise give another \
                 template with `--chat-template FILE`"
                    .to_owned()
            }
            Self::SystemIgnored { .. } => {
                "leave out `--system`, or give a template that renders it with `--chat-template FILE`".to_owned()
            }
            Self::NoPostInstruction { .. } => {
                "directions are taken at tokens that the template puts after the user's text: give a template that \
                 ends the user's turn and opens the assistant's with `--chat-template FILE`"
                    .to_owned()
            }
            Self::EmptyInstruction => "remove the empty prompt from the prompt set".to_owned(),
            Self::EmptyOpening { .. } => "give the beginning of a response, such as `I`, or a token id".to_owned(),
            Self::Read { .. } | Self::Encode { .. } | Self::Decode { .. } => return None,
        };
        Some(hint)
    }
}

fn folders(searched: &[PathBuf]) -> String {
    if searched.is_empty() {
        return "any folder (none was given)".to_owned();
    }
    let quoted: Vec<String> = searched.iter().map(|path| format!("`{}`", path.display())).collect();
    quoted.join(", ")
}
