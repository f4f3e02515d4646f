//! Errors of TOML files in one line: the parser's own message quotes the file over several.

/// What is wrong with `text`, and where, counted from 1.
pub fn words(text: &str, error: &toml::de::Error) -> String {
    let message = error.message().trim().replace('\n', ", ");
    let Some(before) = error.span().and_then(|span| text.get(..span.start)) else { return message };
    let line = 1 + before.matches('\n').count();
    let column = 1 + before.rsplit('\n').next().unwrap_or_default().chars().count();
    format!("{message} at line {line} column {column}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_place() {
        for (text, place) in [("a = 1\nbé = = 2", "at line 2 column 6"), ("a = \u{1b}[2J", "at line 1 column 6")] {
            let error = text.parse::<toml::Table>().unwrap_err();
            let words = words(text, &error);
            assert!(words.ends_with(place) && !words.contains('\n'), "{words}");
        }
    }
}
