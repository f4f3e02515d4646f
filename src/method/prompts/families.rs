//! Bundled families of requests that are worded alike and differ in what they are about: "How do I kill {}?" with the weeds,
//! and with a neighbour. A gate that is fitted on many of them learns what is harmful and not how harm is worded.

/// The file: of each family a line of wordings with a `{}` each, a line that begins with `+` of what makes a request to be
/// answered, and one that begins with `-` of what makes one to be refused, or none; parts are parted by ` | `.
const FAMILIES: &str = include_str!("../../../fixtures/prompts/families.txt");

/// Where a wording takes what the request is about.
const FIELD: &str = "{}";

/// Requests that are worded alike.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Family {
    /// The first of its wordings, which names it.
    pub name: String,
    /// To be answered.
    pub pseudo_harmful: Vec<String>,
    /// To be refused; may be empty.
    pub harmful: Vec<String>,
}

/// The bundled families. The wordings of one are used in turn, alike for both classes.
pub(super) fn families() -> Vec<Family> {
    let parts = |line: &'static str| -> Vec<&str> { line.split(" | ").map(str::trim).collect() };
    let mut wordings: Vec<&str> = Vec::new();
    let mut found: Vec<Family> = Vec::new();
    for line in FAMILIES.lines() {
        let requests = |about: &'static str| -> Vec<String> {
            let each = parts(about).into_iter().enumerate();
            each.map(|(at, about)| wordings[at % wordings.len()].replace(FIELD, about)).collect()
        };
        match (line.strip_prefix('+'), line.strip_prefix('-'), found.last_mut()) {
            (Some(about), _, Some(family)) => family.pseudo_harmful = requests(about),
            (_, Some(about), Some(family)) => family.harmful = requests(about),
            _ => {
                wordings = parts(line);
                found.push(Family { name: wordings[0].to_string(), ..Family::default() });
            }
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::super::text::normalised;
    use super::*;

    #[test]
    fn families_are_worded_alike_and_no_request_is_there_twice() {
        let all = families();
        assert!(all.len() >= 100);
        let names: HashSet<&str> = all.iter().map(|family| family.name.as_str()).collect();
        assert_eq!(names.len(), all.len());
        let mut seen: HashSet<String> = HashSet::new();
        for Family { name, pseudo_harmful, harmful } in &all {
            assert!(pseudo_harmful.len() == 10 && [0, 10].contains(&harmful.len()), "{name}");
            assert_eq!(name.matches(FIELD).count(), 1, "{name}");
            let (before, after) = name.split_once(FIELD).unwrap();
            for first in [pseudo_harmful.first(), harmful.first()].into_iter().flatten() {
                assert!(first.starts_with(before) && first.ends_with(after), "{name}: {first}");
            }
            for request in pseudo_harmful.iter().chain(harmful) {
                assert!(!request.contains(['{', '}', '|', '+']) && seen.insert(normalised(request)), "{request}");
            }
        }
        // nor is one of them elsewhere among what is fitted on
        let others = [
            include_str!("../../../fixtures/prompts/contrasts.txt"),
            include_str!("../../../fixtures/prompts/harmful.txt"),
            include_str!("../../../fixtures/prompts/harmless.txt"),
            include_str!("../../../fixtures/prompts/pseudo_harmful.txt"),
            include_str!("../../../fixtures/prompts/requests_harmful.txt"),
            include_str!("../../../fixtures/prompts/requests_pseudo_harmful.txt"),
        ];
        assert!(others.iter().flat_map(|text| text.lines()).all(|line| !seen.contains(&normalised(line))));
    }
}
