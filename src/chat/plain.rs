//! Text without a chat template: what the tokenizer puts in front of it.

use super::{Chat, ChatError, PROBE};

impl Chat {
    /// The tokens that the tokenizer puts before a text that is no chat (`<s>`); empty for many.
    ///
    /// What it puts behind (an end of sequence) is not among them.
    ///
    /// # Errors
    /// If the tokenizer fails.
    pub fn leading_tokens(&self) -> Result<Vec<u32>, ChatError> {
        let failed = |error: tokenizers::Error| ChatError::Encode { bytes: PROBE.len(), reason: error.to_string() };
        let whole = self.tokenizer.encode_fast(PROBE, true).map_err(failed)?;
        // special tokens of the text itself are not marked, those that were added are
        let added = whole.get_special_tokens_mask().iter().take_while(|mark| **mark == 1).count();
        Ok(whole.get_ids()[..added].to_vec())
    }

    /// The spaces that belong between a prompt and a response: those that the template prints there, where it
    /// prints nothing else.
    pub fn response_spaces(&self) -> String {
        self.response_lead().filter(|lead| lead.bytes().all(|b| b == b' ')).unwrap_or_default()
    }
}
