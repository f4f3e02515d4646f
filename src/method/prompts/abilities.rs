//! Bundled prompts that ask for an ability, for what should not suffer by an edit.

const PROMPTS: &str = include_str!("../../../fixtures/prompts/abilities.txt");

/// The abilities, in the order of the file.
const NAMES: [&str; 5] = ["maths", "code", "facts", "style", "safety"];

/// Prompts that ask for one ability.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ability {
    /// Its name.
    pub name: &'static str,
    /// The prompts.
    pub prompts: Vec<String>,
}

/// The bundled prompts of every ability, as many of each.
pub fn abilities() -> Vec<Ability> {
    let lines: Vec<&str> = PROMPTS.lines().collect();
    let each = lines.chunks(lines.len() / NAMES.len());
    let of = |(name, lines): (&&'static str, &[&str])| Ability {
        name,
        prompts: lines.iter().map(|line| (*line).to_string()).collect(),
    };
    NAMES.iter().zip(each).map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_ability_has_its_prompts() {
        let all = abilities();
        assert_eq!(all.len(), NAMES.len());
        assert!(all.iter().all(|ability| ability.prompts.len() == 12), "{all:?}");
        for (name, word) in [("maths", "derivative"), ("code", "Python"), ("facts", "capital"), ("safety", "first aid")]
        {
            let ability = all.iter().find(|ability| ability.name == name).unwrap();
            assert!(ability.prompts.iter().any(|prompt| prompt.contains(word)), "{name}");
        }
    }
}
