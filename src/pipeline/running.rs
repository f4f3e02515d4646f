//! What it takes to run any variant of a package.

use std::sync::atomic::AtomicBool;

use super::engine::Engine;
use super::opened::Understood;
use super::{check, pad_token, verify_prompts};
use crate::chat::Chat;
use crate::edit::Edit;
use crate::error::Error;
use crate::method::prompts::Prompts;
use crate::runtime::session::Runtime;

/// How variants are run.
#[derive(Clone, Copy)]
pub struct Running<'a> {
    /// ONNX Runtime.
    pub runtime: &'a Runtime,
    /// Tokenizer and template.
    pub chat: &'a Chat,
    /// Prompts.
    pub prompts: &'a Prompts,
    /// Rows a run.
    pub batch: usize,
    /// Set by Ctrl-C.
    pub cancelled: &'a AtomicBool,
}

impl<'a> Running<'a> {
    /// An engine for a model.
    pub fn engine<'m>(&self, model: &'m Understood<'m>) -> Engine<'m>
    where
        'a: 'm,
    {
        let Self { runtime, chat, batch, cancelled, .. } = *self;
        Engine { runtime, model, batch, pad: pad_token(chat), cancelled, steered: None }
    }

    /// Logits of `out` against run-time ablation of `base`.
    ///
    /// # Errors
    /// If a run fails.
    pub fn check(&self, base: &Understood<'_>, out: &Understood<'_>, edit: &Edit) -> Result<check::LogitReport, Error> {
        let prompts = verify_prompts(self.chat, self.prompts)?;
        check::logits(&self.engine(base), &self.engine(out), edit, &prompts)
    }
}
