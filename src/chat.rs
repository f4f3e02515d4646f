//! A model's tokenizer and chat template: from an instruction to the token ids of a prompt.
//!
//! Prompts are made as `transformers` makes them with
//! `apply_chat_template([system, user], add_generation_prompt=True, tokenize=True)`: the template
//! renders a text, special tokens included, and the text is tokenized without adding any again.
//!
//! A template that prints the date (`strftime_now`) prints [`ChatOptions::date`], today in UTC by
//! default, at midnight: such prompts differ from one day to the next, so what is resumed or
//! compared later needs the date that [`Chat::date`] reports.

mod bounds;
mod content;
mod date;
mod error;
mod growth;
mod plain;
mod python;
mod source;
mod template;
#[cfg(test)]
mod tests;

use std::path::{Path, PathBuf};

use minijinja::Value;
use tokenizers::Tokenizer;

use content::Content;
pub use date::Date;
pub use error::ChatError;
use source::{ConfiguredIds, Source, SpecialToken};
use template::Template;

/// The longest prompt that is tokenized, in bytes. The largest contexts hold about as many tokens.
const MAX_PROMPT_BYTES: usize = 1 << 20;

/// Stands for a user's text where any would do.
const PROBE: &str = "Hello";

/// Instructions that begin and end in different characters, so that what their prompts end in alike
/// is the template's. They end in letters, digits, and marks that tokenizers merge with newlines,
/// spaces or brackets after them.
const SUFFIX_PROBES: [&str; 12] = [
    "Hello",
    "Write a short poem about the sea.",
    "What is the capital of France?",
    "Count from 1 to 20",
    "Explain what she meant by \"never again\"",
    "Give me three reasons (short ones)",
    "Stop that now!",
    "print(x[0]);",
    "Complete the list: red, green,",
    "Translate into English:",
    "解释一下什么是光合作用。",
    "Qu'est-ce que c'est que \u{201c}\u{e7}a\u{201d}",
];

/// One turn of a conversation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `system`, `user` or `assistant`.
    pub role: String,
    /// The text.
    pub content: String,
}

impl Message {
    /// A turn of `role`.
    pub fn new(role: impl Into<String>, content: impl Into<String>) -> Self {
        Self { role: role.into(), content: content.into() }
    }
}

/// What a user may choose about prompts.
#[derive(Debug, Clone, Copy, Default)]
pub struct ChatOptions<'a> {
    /// System prompt, put before every instruction. An empty one is a system turn with no text,
    /// which is not the same as none: some templates have a default that it replaces.
    pub system: Option<&'a str>,
    /// Template text to use instead of the model's (`--chat-template`).
    pub template_override: Option<&'a str>,
    /// Value of `enable_thinking` (Qwen 3) and `thinking` (Granite, DeepSeek) in the template; left
    /// undefined where nothing is given.
    pub enable_thinking: Option<bool>,
    /// The date that `strftime_now` prints; today in UTC where nothing is given.
    pub date: Option<Date>,
}

/// Ids of the special tokens, where the model has them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SpecialIds {
    /// Begin of sequence.
    pub bos: Option<u32>,
    /// End of sequence, the tokenizer's.
    pub eos: Option<u32>,
    /// Padding.
    pub pad: Option<u32>,
    /// Every id that ends a response: `eos` and those that `generation_config.json`,
    /// `genai_config.json` and `config.json` name.
    pub stop: Vec<u32>,
}

/// A tokenizer with its chat template, system prompt and special tokens.
#[derive(Debug)]
pub struct Chat {
    tokenizer: Tokenizer,
    tokenizer_path: PathBuf,
    template: Template,
    content: Content,
    system: Option<String>,
    date: Date,
    special: SpecialIds,
    vocab_size: usize,
}

impl Chat {
    /// Loads `tokenizer.json` from the first of `folders` that has one.
    ///
    /// The template is, in this order: the override; `chat_template.jinja`; the `chat_template` of
    /// `tokenizer_config.json` (a text, or a list of named ones, of which `default` or else the
    /// first); that of `chat_template.json`. The tokenizer's folder is searched before the others.
    ///
    /// Truncation, padding and BPE dropout of the tokenizer are turned off. Where the template takes a
    /// turn's content as a list of parts, it is given so. A few prompts are rendered,
    /// so that a template that cannot work, or leaves the system prompt out, is refused here.
    pub fn load(folders: &[&Path], options: ChatOptions<'_>) -> Result<Self, ChatError> {
        let chat = Self::open(folders, options)?;
        chat.check()?;
        Ok(chat)
    }

    fn open(folders: &[&Path], options: ChatOptions<'_>) -> Result<Self, ChatError> {
        let source = Source::read(folders)?;
        let (text, origin) = match options.template_override {
            Some(text) => (text.to_owned(), "`--chat-template`".to_owned()),
            None => source.template.ok_or_else(|| ChatError::TemplateMissing {
                searched: folders.iter().map(|folder| folder.to_path_buf()).collect(),
            })?,
        };
        let date = options.date.unwrap_or_else(Date::today_utc);
        let mut globals: Vec<(String, Value)> = source
            .special_tokens
            .iter()
            .map(|(name, token)| match token {
                SpecialToken::One(text) => (name.clone(), Value::from(text.as_str())),
                SpecialToken::Many(list) => (name.clone(), Value::from(list.clone())),
            })
            .collect();
        if let Some(thinking) = options.enable_thinking {
            for name in ["enable_thinking", "thinking"] {
                globals.push((name.to_owned(), Value::from(thinking)));
            }
        }
        let special = special_ids(&source.tokenizer, &source.special_tokens, source.ids);
        let vocab = source.tokenizer.get_vocab(true);
        let template = Template::compile(&text, &origin, globals, date)?;
        Ok(Self {
            content: Content::of(&template)?,
            template,
            tokenizer: source.tokenizer,
            tokenizer_path: source.tokenizer_path,
            system: options.system.map(ToOwned::to_owned),
            date,
            special,
            vocab_size: vocab.values().max().map_or(0, |id| *id as usize + 1),
        })
    }

    /// Renders probes to find out early that the template does not fit its use.
    fn check(&self) -> Result<(), ChatError> {
        let rendered = self.render(PROBE)?;
        let user = |text| [Message::new("user", text)];
        if self.system.as_ref().is_some_and(|system| !system.trim().is_empty())
            && self.render_messages(&user(PROBE), true).is_ok_and(|without| without == rendered)
        {
            let origin = self.template.origin().to_owned();
            return Err(ChatError::SystemIgnored { origin });
        }
        if self.render("Goodbye")? == rendered {
            let origin = self.template.origin().to_owned();
            return Err(ChatError::InstructionIgnored { origin });
        }
        Ok(())
    }

    /// The prompt for one instruction as text: the system prompt, if there is one, the instruction
    /// and what opens the response.
    pub fn render(&self, instruction: &str) -> Result<String, ChatError> {
        if instruction.trim().is_empty() {
            return Err(ChatError::EmptyInstruction);
        }
        self.render_messages(&self.conversation(instruction), true)
    }

    /// Renders any conversation, without the system prompt of the options.
    pub fn render_messages(&self, messages: &[Message], add_generation_prompt: bool) -> Result<String, ChatError> {
        self.template.render(messages, self.content, add_generation_prompt)
    }

    fn conversation(&self, instruction: &str) -> Vec<Message> {
        let system = self.system.iter();
        system.map(|text| Message::new("system", text)).chain([Message::new("user", instruction)]).collect()
    }

    /// The prompt of a conversation that waits for its answer, as token ids. The system prompt of the options comes first,
    /// unless the conversation begins with one of its own.
    ///
    /// # Errors
    /// If the template does not take these turns, or the prompt is too long.
    pub fn encode_conversation(&self, turns: &[Message]) -> Result<Vec<u32>, ChatError> {
        let own = turns.first().is_some_and(|turn| turn.role == "system");
        let system = self.system.iter().filter(|_| !own).map(|text| Message::new("system", text));
        let messages: Vec<Message> = system.chain(turns.iter().cloned()).collect();
        self.encode_rendered(&self.render_messages(&messages, true)?)
    }

    /// The prompt for one instruction as token ids.
    ///
    /// Only what the template prints is tokenized, so there is one beginning-of-sequence token where
    /// the template prints one and none where it does not, whatever the tokenizer would add.
    pub fn encode_prompt(&self, instruction: &str) -> Result<Vec<u32>, ChatError> {
        self.encode_rendered(&self.render(instruction)?)
    }

    /// The token ids of what the template printed.
    fn encode_rendered(&self, prompt: &str) -> Result<Vec<u32>, ChatError> {
        if prompt.len() > MAX_PROMPT_BYTES {
            return Err(ChatError::PromptTooLong { bytes: prompt.len(), limit: MAX_PROMPT_BYTES });
        }
        self.encode(prompt)
    }

    /// The token ids of a text as it is: special tokens written in it count, none are added.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, ChatError> {
        let encoding = self
            .tokenizer
            .encode_fast(text, false)
            .map_err(|error| ChatError::Encode { bytes: text.len(), reason: error.to_string() })?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of token ids. Ids outside the vocabulary are left out.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, ChatError> {
        self.tokenizer
            .decode(ids, skip_special)
            .map_err(|error| ChatError::Decode { tokens: ids.len(), reason: error.to_string() })
    }

    /// A token as a table shows it: its text, in quotes with escapes where it holds white space or
    /// other invisible characters (`I`, `" I"`, `"\n"`, `<|eot_id|>`); `#123` for an unknown id.
    pub fn token_label(&self, id: u32) -> String {
        let Some(raw) = self.tokenizer.id_to_token(id) else {
            return format!("#{id}");
        };
        let added = self.tokenizer.get_added_vocabulary();
        let text = if added.simple_id_to_token(id).is_some() {
            raw.clone()
        } else if raw.starts_with('\u{2581}') {
            // A decoder would drop the space of a first token.
            raw.replace('\u{2581}', " ")
        } else {
            match self.decode(&[id], false) {
                Ok(text) if !text.is_empty() && !text.contains('\u{fffd}') => text,
                _ => raw.clone(),
            }
        };
        let plain =
            !text.is_empty() && text.chars().all(|character| !character.is_whitespace() && !character.is_control());
        if plain { text } else { format!("{text:?}") }
    }

    /// The post-instruction tokens: what every prompt ends in after the user's text.
    ///
    /// The longest token suffix that the prompts of several different instructions have in common
    /// (Wang et al. 2025, section 3; its length is the `k` of the positions `-k..-1`). Prompts are
    /// compared as tokens, so a template token that merges with the end of some instructions does
    /// not count.
    pub fn post_instruction_suffix(&self) -> Result<Vec<u32>, ChatError> {
        let mut suffix = self.encode_prompt(SUFFIX_PROBES[0])?;
        for probe in &SUFFIX_PROBES[1..] {
            let prompt = self.encode_prompt(probe)?;
            let common = suffix.iter().rev().zip(prompt.iter().rev()).take_while(|(left, right)| left == right).count();
            suffix.drain(..suffix.len() - common);
        }
        if suffix.is_empty() {
            return Err(ChatError::NoPostInstruction { origin: self.template.origin().to_owned() });
        }
        Ok(suffix)
    }

    /// The first token of a response that begins with `opening` (`I`, `As an AI`).
    ///
    /// That is the token a model predicts right after the prompt, so the opening is tokenized behind
    /// one, with the spaces that the template itself puts before a response: after Llama-2's
    /// `[/INST]` comes ` I`, not `I`. Where the end of the prompt and the opening merge into one
    /// token, which no model can predict there, it is the first token of the opening alone.
    pub fn first_token_after_prompt(&self, opening: &str) -> Result<u32, ChatError> {
        if opening.is_empty() {
            return Err(ChatError::EmptyOpening { opening: opening.to_owned() });
        }
        let prompt_text = self.render(PROBE)?;
        let prompt = self.encode(&prompt_text)?;
        let space = self.space_before_response(&prompt_text, opening);
        let whole = self.encode(&format!("{prompt_text}{space}{opening}"))?;
        if let Some(rest) = whole.strip_prefix(prompt.as_slice())
            && let Some(first) = rest.first()
        {
            return Ok(*first);
        }
        // Tokenizers that put a metaspace before every text supply the space themselves.
        let bare = self.encode(opening)?;
        let supplies_space = bare
            .first()
            .and_then(|id| self.tokenizer.id_to_token(*id))
            .is_some_and(|token| token.starts_with('\u{2581}'));
        let alone = if space.is_empty() || supplies_space { bare } else { self.encode(&format!("{space}{opening}"))? };
        alone.first().copied().ok_or_else(|| ChatError::EmptyOpening { opening: opening.to_owned() })
    }

    /// The spaces (not newlines) that the template prints between the prompt and a response, or
    /// nothing where the opening has its own or the template does not show any.
    fn space_before_response(&self, prompt: &str, opening: &str) -> String {
        if opening.starts_with(char::is_whitespace) {
            return String::new();
        }
        let Some(response) = self.rendered_response(prompt, opening) else {
            return String::new();
        };
        let bare = response.trim_start_matches(' ');
        if bare.starts_with(opening) { response[..response.len() - bare.len()].to_owned() } else { String::new() }
    }

    /// What the template prints between the prompt and the text of a response, if it shows that.
    ///
    /// Empty or white space for most models. Anything else (`<think>\n\n</think>\n\n`,
    /// `<|channel|>final<|message|>`) is what the model itself writes first, so the first response
    /// position does not tell a refusal; [`ChatOptions::enable_thinking`] may help.
    pub fn response_lead(&self) -> Option<String> {
        let answer = "Certainly";
        let response = self.rendered_response(&self.render(PROBE).ok()?, answer)?;
        response.find(answer).map(|start| response[..start].to_owned())
    }

    /// What follows `prompt`, made of the probe, when the conversation goes on with `response`.
    fn rendered_response(&self, prompt: &str, response: &str) -> Option<String> {
        let mut messages = self.conversation(PROBE);
        messages.push(Message::new("assistant", response));
        let answered = self.render_messages(&messages, false).ok()?;
        answered.strip_prefix(prompt).map(ToOwned::to_owned)
    }

    /// One more than the largest token id, added tokens included. A model's `d_vocab` may be larger
    /// (padded) but not smaller.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// The id of a token by its text in the vocabulary (`<s>`, `▁I`, `Ġthe`).
    pub fn token_to_id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// The text of a token in the vocabulary; [`token_label`](Self::token_label) is the readable form.
    pub fn id_to_token(&self, id: u32) -> Option<String> {
        self.tokenizer.id_to_token(id)
    }

    /// Ids of the special tokens.
    pub fn special_ids(&self) -> &SpecialIds {
        &self.special
    }

    /// The `tokenizer.json` that was loaded.
    pub fn tokenizer_path(&self) -> &Path {
        &self.tokenizer_path
    }

    /// Where the template is from: a path in backticks, or `--chat-template`.
    pub fn template_origin(&self) -> &str {
        self.template.origin()
    }

    /// The system prompt.
    pub fn system(&self) -> Option<&str> {
        self.system.as_deref()
    }

    /// The date that prompts contain, where the template prints one.
    pub fn date(&self) -> Option<Date> {
        self.template.uses_date().then_some(self.date)
    }
}

/// Ids by the tokenizer's names, else by the model's configuration.
fn special_ids(tokenizer: &Tokenizer, tokens: &[(String, SpecialToken)], configured: ConfiguredIds) -> SpecialIds {
    let named = |wanted: &str| {
        let (_, token) = tokens.iter().find(|(name, _)| name == wanted)?;
        match token {
            SpecialToken::One(text) => tokenizer.token_to_id(text),
            SpecialToken::Many(_) => None,
        }
    };
    let eos = named("eos_token").or(configured.eos.first().copied());
    let mut stop: Vec<u32> = eos.into_iter().collect();
    stop.extend(configured.eos.iter().filter(|id| Some(**id) != eos));
    SpecialIds { bos: named("bos_token").or(configured.bos), eos, pad: named("pad_token").or(configured.pad), stop }
}
