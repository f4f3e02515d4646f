//! Multiple choice accuracy of a model, by the likelihood that it gives to each choice.

use super::engine::{Engine, Observer};
use super::likelihood::{self, Query};
use super::stage::Stage;
use crate::chat::Chat;
use crate::error::{Error, Kind};
use crate::eval::statistics::{CONFIDENCE, wilson};
use crate::multiple_choice::{Item, ItemError, Items};
use crate::report::scores::{ItemScore, MultipleChoice, Scoring, SubjectAccuracy};

/// How to ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// Letter or text.
    pub scoring: Scoring,
    /// Solved examples before each question, at most.
    pub shots: usize,
    /// Ask through the chat template: examples and question are one user turn, the choice begins the answer.
    pub chat_template: bool,
    /// Without the chat template, put the tokens first that the tokenizer puts before a text.
    pub bos: bool,
    /// The most tokens the model takes; longer prompts lose their begin.
    pub context: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { scoring: Scoring::Letter, shots: 0, chat_template: false, bos: true, context: None }
    }
}

impl From<ItemError> for Error {
    fn from(error: ItemError) -> Self {
        Self::Other { kind: Kind::Usage, message: error.to_string(), hint: error.hint() }
    }
}

/// Letter of a choice.
fn letter(index: usize) -> char {
    char::from(b'A' + u8::try_from(index).expect("at most 26 choices"))
}

/// A question as it is asked, up to where a choice follows.
fn asked(item: &Item, scoring: Scoring) -> String {
    match scoring {
        Scoring::Letter => {
            let choices: String =
                item.choices.iter().enumerate().map(|(at, text)| format!("\n{}. {text}", letter(at))).collect();
            format!("{}{choices}\nAnswer:", item.question)
        }
        Scoring::Text => format!("Question: {}\nAnswer:", item.question),
    }
}

/// What stands for a choice in an answer.
fn continuation(item: &Item, index: usize, scoring: Scoring) -> String {
    match scoring {
        Scoring::Letter => letter(index).to_string(),
        Scoring::Text => item.choices[index].clone(),
    }
}

/// Everything before a choice: introduction (letters only), solved examples, question.
///
/// The texts are those of lm-evaluation-harness' tasks `mmlu` and `arc`; without a subject the introduction ends
/// after "(with answers)".
fn prompt(items: &Items, item: &Item, options: &Options) -> String {
    let mut text = String::new();
    if options.scoring == Scoring::Letter {
        text.push_str("The following are multiple choice questions (with answers)");
        if let Some(subject) = &item.subject {
            text.push_str(" about ");
            text.push_str(subject.replace('_', " ").trim());
        }
        text.push_str(".\n\n");
    }
    for example in items.examples_of(item, options.shots) {
        let answer = continuation(example, example.answer, options.scoring);
        text.push_str(&format!("{} {answer}\n\n", asked(example, options.scoring)));
    }
    text.push_str(&asked(item, options.scoring));
    text
}

/// Tokens of a context with a continuation, and how many of them are the continuation's.
///
/// As lm-evaluation-harness (`TemplateLM._encode_pair`): white space at the context's end goes over to the
/// continuation; the two are tokenized together, and what is longer than the context's own tokens is the
/// continuation. Where they merge so that nothing would be left, it begins where the tokens part.
fn encode_pair(chat: &Chat, leading: &[u32], context: &str, continuation: &str) -> Result<(Vec<u32>, usize), Error> {
    // Python's `rstrip` takes the four separators of ASCII, too
    let kept = context.trim_end_matches(|c: char| c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c));
    let alone = chat.encode(kept)?;
    let whole = chat.encode(&format!("{context}{continuation}"))?;
    let mut begin = alone.len();
    if begin >= whole.len() {
        begin = alone.iter().zip(&whole).take_while(|(one, other)| one == other).count();
    }
    let scored = whole.len().saturating_sub(begin);
    if scored == 0 || leading.len() + begin == 0 {
        return Err(Error::failed("the tokenizer leaves nothing of a choice, or nothing before it"));
    }
    Ok((leading.iter().copied().chain(whole).collect(), scored))
}

/// Index of the largest value; the first one on a tie.
fn likeliest(values: impl IntoIterator<Item = f64>) -> usize {
    let mut best = (0, f64::NEG_INFINITY);
    for (index, value) in values.into_iter().enumerate() {
        if value > best.1 {
            best = (index, value);
        }
    }
    best.0
}

/// Asks every item and takes the choice that the model finds likeliest.
///
/// The log-likelihood of a choice is the sum over its tokens of the log-softmax (float64, of float32 logits) given all
/// before, in nats. With [`Scoring::Text`] the choice is also taken by log-likelihood a byte of its text (`acc_norm`
/// of lm-evaluation-harness, which divides by characters).
///
/// # Errors
/// If a prompt cannot be made, if a run fails, or on cancellation.
pub fn measure(
    engine: &Engine<'_>,
    chat: &Chat,
    items: &Items,
    options: &Options,
    observer: &dyn Observer,
) -> Result<MultipleChoice, Error> {
    let leading = if options.bos && !options.chat_template { chat.leading_tokens()? } else { Vec::new() };
    let space = if options.chat_template { chat.response_spaces() } else { " ".to_owned() };
    let mut encoded = Vec::new();
    let mut truncated = 0;
    for item in &items.items {
        let mut context = prompt(items, item, options);
        if options.chat_template {
            context = chat.render(&context)?;
        }
        let mut cut = false;
        for index in 0..item.choices.len() {
            let continuation = format!("{space}{}", continuation(item, index, options.scoring));
            let (mut tokens, scored) = encode_pair(chat, &leading, &context, &continuation)?;
            if let Some(limit) = options.context
                && tokens.len() > limit.saturating_add(1)
            {
                if scored > limit {
                    return Err(Error::usage(
                        format!("a choice of {scored} tokens does not fit a context of {limit}"),
                        "raise the context, or leave the item out",
                    ));
                }
                tokens.drain(..tokens.len() - limit - 1);
                cut = true;
            }
            encoded.push((tokens, scored));
        }
        truncated += usize::from(cut);
    }
    let queries: Vec<Query<'_>> = encoded.iter().map(|(tokens, scored)| Query { tokens, scored: *scored }).collect();
    let room = engine.room();
    let found = likelihood::observed(engine, &queries, (room, room), (observer, &Stage::MultipleChoice))?;
    let mut sums = found.into_iter().map(|of| of.iter().sum::<f64>());
    let scores = items.items.iter().map(|item| score(item, sums.by_ref().take(item.choices.len()), options)).collect();
    Ok(summary(items, scores, options, truncated))
}

/// One item's choices.
fn score(item: &Item, log_likelihoods: impl Iterator<Item = f64>, options: &Options) -> ItemScore {
    let log_likelihoods: Vec<f64> = log_likelihoods.collect();
    let chosen = likeliest(log_likelihoods.iter().copied());
    let normalised = log_likelihoods.iter().zip(&item.choices).map(|(sum, text)| sum / text.len() as f64);
    let chosen_normalised = (options.scoring == Scoring::Text).then(|| likeliest(normalised));
    ItemScore { answer: item.answer, chosen, chosen_normalised, right: chosen == item.answer, log_likelihoods }
}

/// Accuracies.
fn summary(items: &Items, scores: Vec<ItemScore>, options: &Options, truncated: usize) -> MultipleChoice {
    let mut subjects: Vec<SubjectAccuracy> = Vec::new();
    let normalised = |score: &ItemScore| score.chosen_normalised.map(|chosen| usize::from(chosen == score.answer));
    for (item, score) in items.items.iter().zip(&scores) {
        let Some(subject) = &item.subject else { continue };
        let at = subjects.iter().position(|of| of.subject == *subject).unwrap_or_else(|| {
            subjects.push(SubjectAccuracy { subject: subject.clone(), ..SubjectAccuracy::default() });
            subjects.len() - 1
        });
        let of = &mut subjects[at];
        of.total += 1;
        of.right += usize::from(score.right);
        of.accuracy = of.right as f64 / of.total as f64;
        of.right_normalised = normalised(score).map(|right| right + of.right_normalised.unwrap_or(0));
    }
    let total = scores.len();
    let share = |right: usize| if total == 0 { 0.0 } else { right as f64 / total as f64 };
    let right = scores.iter().filter(|score| score.right).count();
    let right_normalised =
        (options.scoring == Scoring::Text).then(|| scores.iter().filter_map(normalised).sum::<usize>());
    MultipleChoice {
        scoring: options.scoring,
        total,
        right,
        accuracy: share(right),
        interval: wilson(right, total, CONFIDENCE),
        right_normalised,
        accuracy_normalised: right_normalised.map(share),
        shots: options.shots,
        chat_template: options.chat_template,
        truncated,
        subjects,
        items: scores,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn items() -> Items {
        let item = |question: &str, answer, subject: Option<&str>| Item {
            question: question.into(),
            choices: vec!["one".into(), "two words".into()],
            answer,
            subject: subject.map(Into::into),
        };
        Items {
            items: vec![item("Q?", 0, Some("high_school_physics")), item("R?", 1, None)],
            examples: vec![item("E?", 1, Some("high_school_physics"))],
        }
    }

    #[test]
    fn prompts_are_the_published_ones() {
        let items = items();
        let options = |scoring, shots| Options { scoring, shots, ..Options::default() };
        assert_eq!(
            prompt(&items, &items.items[0], &options(Scoring::Letter, 1)),
            "The following are multiple choice questions (with answers) about high school physics.\n\n\
             E?\nA. one\nB. two words\nAnswer: B\n\nQ?\nA. one\nB. two words\nAnswer:"
        );
        assert_eq!(
            prompt(&items, &items.items[1], &options(Scoring::Letter, 0)),
            "The following are multiple choice questions (with answers).\n\nR?\nA. one\nB. two words\nAnswer:"
        );
        assert_eq!(
            prompt(&items, &items.items[0], &options(Scoring::Text, 5)),
            "Question: E?\nAnswer: two words\n\nQuestion: Q?\nAnswer:"
        );
    }

    #[test]
    fn ties_go_to_the_first_and_length_counts_in_bytes() {
        assert_eq!(likeliest([-2.0, -1.0, -1.0]), 1);
        assert_eq!(likeliest([f64::NEG_INFINITY; 2]), 0);
        let items = items();
        let options = Options { scoring: Scoring::Text, ..Options::default() };
        // -1.5 over 3 bytes against -3 over 9
        let scores: Vec<ItemScore> =
            items.items.iter().map(|item| score(item, [-1.5, -3.0].into_iter(), &options)).collect();
        assert_eq!((scores[0].chosen, scores[0].chosen_normalised), (0, Some(1)));
        let found = summary(&items, scores, &options, 0);
        assert_eq!((found.total, found.right, found.right_normalised), (2, 1, Some(1)));
        assert_eq!(found.subjects.len(), 1);
        assert_eq!((found.subjects[0].right, found.subjects[0].right_normalised), (1, Some(0)));
        let plain = summary(&items, Vec::new(), &Options::default(), 0);
        assert_eq!((plain.accuracy, plain.accuracy_normalised), (0.0, None));
    }
}
