//! The form in which a template takes the content of a turn: a text, or a list of parts.
//!
//! Templates of models that also take images iterate `content` as `[{"type": "text", "text": ..}]`; most of them take a
//! plain text as well, and some do not. Serving software tells the form from the template's source; here it is found by
//! rendering: a text that does not appear in what is rendered is given as a part, and where it appears then, that is
//! the form of this role.

use minijinja::Value;

use super::Message;
use super::error::ChatError;
use super::template::Template;

/// A text that no template has of its own.
const MARK: &str = "Xq7 vellum Zw3";

/// How each role's content is given.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Content {
    system: Form,
    user: Form,
    assistant: Form,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Form {
    /// The text itself.
    #[default]
    Text,
    /// A list of one part, `{"type": "text", "text": ..}`.
    Parts,
}

impl Content {
    /// Finds the forms by rendering a conversation for each role.
    ///
    /// # Errors
    /// If the template takes more time or memory than it may; other failures are left to those who render.
    pub(super) fn of(template: &Template) -> Result<Self, ChatError> {
        let mut found = Self::default();
        let (user, marked) = (Message::new("user", "Hello"), |role: &str| Message::new(role, MARK));
        found.user = found.form(template, &[marked("user")], true, |content, form| content.user = form)?;
        found.system = found.form(template, &[marked("system"), user.clone()], true, |content, form| {
            content.system = form;
        })?;
        found.assistant = found.form(template, &[user, marked("assistant")], false, |content, form| {
            content.assistant = form;
        })?;
        Ok(found)
    }

    fn form(
        self,
        template: &Template,
        messages: &[Message],
        add_generation_prompt: bool,
        set: impl Fn(&mut Self, Form),
    ) -> Result<Form, ChatError> {
        for form in [Form::Text, Form::Parts] {
            let mut content = self;
            set(&mut content, form);
            match template.render(messages, content, add_generation_prompt) {
                Ok(text) if text.contains(MARK) => return Ok(form),
                Err(error @ ChatError::TemplateUnbounded { .. }) => return Err(error),
                _ => {}
            }
        }
        Ok(Form::Text)
    }

    /// A turn's content in its role's form.
    pub(super) fn value(self, message: &Message) -> Value {
        let form = match message.role.as_str() {
            "system" => self.system,
            "user" => self.user,
            "assistant" => self.assistant,
            _ => Form::Text,
        };
        let text = Value::from(message.content.as_str());
        match form {
            Form::Text => text,
            Form::Parts => Value::from(vec![Value::from_pairs([("type", Value::from("text")), ("text", text)])]),
        }
    }
}
