//! Jinja as `transformers.apply_chat_template` runs it: same whitespace rules, filters, functions.
//!
//! `transformers` renders with `ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)`
//! and loop controls, plus `raise_exception`, `strftime_now`, `{% generation %}` and a `tojson` that
//! does not escape HTML. This file sets minijinja up to agree with it; [`super::python`] adds the
//! Python methods.

use std::error::Error as StdError;
use std::fmt;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, LazyLock};

use minijinja::syntax::SyntaxConfig;
use minijinja::value::{Rest, Value, ValueKind};
use minijinja::{AutoEscape, Environment, Error, ErrorKind, UndefinedBehavior};

use super::bounds::{self, Watch};
use super::content::Content;
use super::date::Date;
use super::error::ChatError;
use super::{Message, python};

/// Name under which the template is kept; never shown (messages name the file instead).
const NAME: &str = "chat_template";
/// A template past this is refused; published ones stay below 32 KiB.
const MAX_TEMPLATE_BYTES: usize = 128 * 1024;
/// Nesting of macro calls and includes at run time; published templates need under 10.
const RECURSION_LIMIT: usize = 200;
/// Fuel of one rendering: that many instructions, or 64 times as many bytes. Published templates need some thousands.
const FUEL: u64 = 1_000_000;
/// Stack that compiles and renders a template, so that nesting cannot overflow the caller's.
const STACK_BYTES: usize = 256 * 1024 * 1024;
/// The most of a template's own words that a message repeats, in characters.
const MOST_WORDS: usize = 500;

/// The delimiters and white space rules of `transformers`.
static SYNTAX: LazyLock<SyntaxConfig> = LazyLock::new(|| {
    SyntaxConfig::builder()
        .trim_blocks(true)
        .lstrip_blocks(true)
        .keep_trailing_newline(true) // `like_jinja2_source` has taken it
        .build()
        .expect("the default delimiters are valid")
});

/// A compiled chat template together with the variables every rendering gets.
pub(super) struct Template {
    environment: Arc<Environment<'static>>,
    globals: Vec<(String, Value)>,
    origin: String,
    uses_date: bool,
}

impl fmt::Debug for Template {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Template")
            .field("origin", &self.origin)
            .field("globals", &self.globals)
            .field("uses_date", &self.uses_date)
            .finish_non_exhaustive()
    }
}

impl Template {
    /// Compiles `source`, found at `origin` (a readable place such as a path).
    ///
    /// `globals` are the special tokens by name and the options given by the user.
    pub(super) fn compile(
        source: &str,
        origin: &str,
        globals: Vec<(String, Value)>,
        date: Date,
    ) -> Result<Self, ChatError> {
        if source.len() > MAX_TEMPLATE_BYTES {
            return Err(ChatError::TemplateTooLong {
                origin: origin.to_owned(),
                bytes: source.len(),
                limit: MAX_TEMPLATE_BYTES,
            });
        }
        let uses_date = source.contains("strftime_now");
        let source = without_generation_tags(&like_jinja2_source(source));
        let environment = on_a_deep_stack(origin, move || {
            let mut environment = environment(date);
            environment.add_template_owned(NAME, bounds::with_bounds(&source, &SYNTAX))?;
            Ok(environment)
        })?;
        Ok(Self { environment: Arc::new(environment), globals, origin: origin.to_owned(), uses_date })
    }

    /// Where the template came from, for messages.
    pub(super) fn origin(&self) -> &str {
        &self.origin
    }

    /// Whether the template mentions `strftime_now`, so that its output depends on the date.
    pub(super) fn uses_date(&self) -> bool {
        self.uses_date
    }

    /// Renders a conversation, each turn's content in the form that `content` tells.
    pub(super) fn render(
        &self,
        messages: &[Message],
        content: Content,
        add_generation_prompt: bool,
    ) -> Result<String, ChatError> {
        let messages: Vec<Value> = messages
            .iter()
            .map(|message| {
                let role = Value::from(message.role.as_str());
                Value::from_pairs([("role", role), ("content", content.value(message))])
            })
            .collect();
        let mut variables = self.globals.clone();
        // After the globals: a special token cannot take the place of the conversation.
        variables.extend([
            ("messages".to_owned(), Value::from(messages)),
            ("tools".to_owned(), Value::from(())),
            ("documents".to_owned(), Value::from(())),
            ("add_generation_prompt".to_owned(), Value::from(add_generation_prompt)),
        ]);
        let environment = Arc::clone(&self.environment);
        on_a_deep_stack(&self.origin, move || environment.get_template(NAME)?.render(Value::from_pairs(variables)))
    }
}

/// The environment that `transformers` builds in `_compile_jinja_template`.
fn environment(date: Date) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_syntax(SYNTAX.clone());
    environment.set_undefined_behavior(UndefinedBehavior::Lenient);
    environment.set_auto_escape_callback(|_| AutoEscape::None);
    environment.set_recursion_limit(RECURSION_LIMIT);
    environment.set_fuel(Some(FUEL));
    environment.set_debug(false);
    environment.set_unknown_method_callback(python::method);
    environment.add_filter("tojson", python::tojson);
    bounds::add_filters(&mut environment);
    environment.add_test("iterable", is_iterable);
    environment.add_test("sequence", is_sequence);
    environment.add_test("callable", is_callable);
    environment.add_function("cycler", minijinja_contrib::globals::cycler);
    environment.add_function("joiner", minijinja_contrib::globals::joiner);
    environment.add_function("raise_exception", |arguments: Rest<Value>| {
        let message = shortened(arguments.first().map(ToString::to_string).unwrap_or_default());
        let error = Error::new(ErrorKind::InvalidOperation, message.clone());
        Err::<Value, Error>(error.with_source(Raised { message }))
    });
    environment.add_function("strftime_now", move |format: &str| date.strftime(format));
    environment
}

/// `is iterable` of Jinja2: whatever `iter()` takes, so strings and undefined values, but not `none`.
fn is_iterable(value: &Value) -> bool {
    match value.kind() {
        ValueKind::String | ValueKind::Undefined => true,
        ValueKind::None => false,
        _ => value.try_iter().is_ok(),
    }
}

/// `is callable` of Jinja2: functions and macros.
fn is_callable(value: &Value) -> bool {
    value.kind() == ValueKind::Plain
}

/// `is sequence` of Jinja2: whatever has a length and can be indexed, so strings and maps too.
fn is_sequence(value: &Value) -> bool {
    matches!(value.kind(), ValueKind::Seq | ValueKind::Map | ValueKind::String | ValueKind::Undefined)
}

/// What Jinja2 does to a source before it lexes it: every newline becomes `\n`, one at the end goes.
fn like_jinja2_source(source: &str) -> String {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    source
}

/// Turns `{% generation %}` blocks, which only mark what the model wrote, into plain scopes.
///
/// `{% with %}` makes the scope that the call block of `transformers` makes; the whitespace control
/// of the tag stays as written.
fn without_generation_tags(source: &str) -> String {
    let mut result = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start + 2);
        result.push_str(before);
        rest = tag;
        let inner = tag.trim_start_matches(['-', '+']).trim_start();
        for (name, replacement) in [("generation", "with"), ("endgeneration", "endwith")] {
            let Some(after) = inner.strip_prefix(name) else {
                continue;
            };
            if after.trim_start().trim_start_matches(['-', '+']).starts_with("%}") {
                let lead = tag.len() - inner.len();
                result.push_str(&tag[..lead]);
                result.push_str(replacement);
                rest = after;
                break;
            }
        }
    }
    result.push_str(rest);
    result
}

/// Runs `work` on a thread with a deep stack: parsing recurses with the template, and freeing a value
/// with the value (so errors, which hold values, do not leave the thread). A thread that takes too much is left behind:
/// it cannot be stopped, and ends with the process.
fn on_a_deep_stack<T: Send + 'static>(
    origin: &str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, ChatError> {
    let failed = |reason: String| ChatError::TemplateFailed { origin: origin.to_owned(), line: 0, reason };
    let (sender, receiver) = mpsc::sync_channel(1);
    let place = origin.to_owned();
    let watch = Watch::start();
    std::thread::Builder::new()
        .name("chat template".to_owned())
        .stack_size(STACK_BYTES)
        // nobody listens where it took too long
        .spawn(move || drop(sender.send(work().map_err(|error| into_chat_error(&error, &place)))))
        .map_err(|error| failed(format!("no thread to run it on: {error}")))?;
    loop {
        match receiver.recv_timeout(Watch::EVERY) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => return Err(failed("the template engine panicked".to_owned())),
            Err(RecvTimeoutError::Timeout) => {}
        }
        if let Some(reason) = watch.exceeded() {
            return Err(ChatError::TemplateUnbounded { origin: origin.to_owned(), reason });
        }
    }
}

/// The start of words that a template made, or a message with such words.
fn shortened(mut words: String) -> String {
    if let Some((at, _)) = words.char_indices().nth(MOST_WORDS) {
        words.truncate(at);
        words.push('…');
    }
    words
}

/// What `raise_exception` was called with, so that it can be told from other failures.
#[derive(Debug)]
struct Raised {
    message: String,
}

impl fmt::Display for Raised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl StdError for Raised {}

fn into_chat_error(error: &Error, origin: &str) -> ChatError {
    let mut cause: Option<&(dyn StdError + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(raised) = current.downcast_ref::<Raised>() {
            return ChatError::TemplateRaised { origin: origin.to_owned(), message: raised.message.clone() };
        }
        cause = current.source();
    }
    let line = error.line().unwrap_or(0);
    let reason = shortened(match error.detail() {
        Some(detail) => format!("{}: {detail}", error.kind()),
        None => error.kind().to_string(),
    });
    let origin = origin.to_owned();
    if error.kind() == ErrorKind::SyntaxError || error.kind() == ErrorKind::BadEscape {
        ChatError::TemplateSyntax { origin, line, reason }
    } else {
        ChatError::TemplateFailed { origin, line, reason }
    }
}

#[cfg(test)]
#[path = "template_tests.rs"]
mod tests;
