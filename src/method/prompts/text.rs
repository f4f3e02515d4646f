//! Prompts as text: what makes two of them the same, and how messages show them.

/// What two prompts share if they are the same: trimmed, case folded (upper, then lower, which also folds `ß`
/// and the final sigma), runs of white space made one space.
pub(crate) fn normalised(text: &str) -> String {
    let folded: String = text.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect();
    folded.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// How many prompts there are, with the verb that goes on.
pub(super) fn count_of_prompts(count: usize) -> String {
    match count {
        1 => "1 prompt is".to_owned(),
        _ => format!("{count} prompts are"),
    }
}

/// Names as a message lists them.
pub(super) fn quoted<const N: usize>(names: [&str; N]) -> String {
    names.map(|name| format!("`{name}`")).join(", ")
}
