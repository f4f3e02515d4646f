//! What it takes to run any variant of a package.

use std::path::Path;
use std::sync::atomic::AtomicBool;

use super::engine::Engine;
use super::journal::Journal;
use super::opened::Understood;
use super::{check, pad_token, verify_prompts};
use crate::chat::{Chat, Message};
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

    /// The journal of a search whose output is `out`, on the model with the hash `model_sha256`.
    ///
    /// # Errors
    /// Usage, if something else has the name of its folder.
    pub(super) fn journal(&self, out: &Path, model_sha256: &str) -> Result<Journal, Error> {
        let turn = |role: &str| Message::new(role, role);
        let turns = [turn("user"), turn("assistant"), turn("user")];
        let put = self.chat.encode_conversation(&turns).or_else(|_| self.chat.encode_prompt("user"))?;
        let runtime = (self.runtime.provider(), Runtime::build_info(), env!("CARGO_PKG_VERSION"));
        Journal::beside(out, &format!("{model_sha256} {runtime:?} {put:?} {:?}", self.chat.system()))
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
