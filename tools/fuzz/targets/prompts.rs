//! Any bytes as a prompt file, whose extension and class the first byte says, and as each guard set.
#![no_main]

use lancet::method::prompts::{GuardPrompts, GuardSet, PromptClass, PromptFormat, decode, parse};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let format = PromptFormat::ALL[usize::from(*kind) % PromptFormat::ALL.len()];
    let class = PromptClass::ALL[usize::from(*kind >> 2) % PromptClass::ALL.len()];
    let name = format!("set.{}", format.extension());
    let Ok(text) = decode(&name, rest) else { return };
    if let Ok(parsed) = parse(&name, text, class, kind & 128 != 0) {
        assert_eq!(parsed.prompts.len(), parsed.rows.len());
        assert!(parsed.prompts.iter().all(|prompt| !prompt.trim().is_empty()));
        let _ = parsed.file;
    }
    for set in GuardSet::ALL {
        if let Ok(found) = GuardPrompts::parse(set, &name, text) {
            assert!(found.to_refuse.iter().chain(&found.safe).all(|prompt| !prompt.turns().is_empty()));
        }
    }
    let _ = GuardPrompts::contrasts(&name, text);
});
