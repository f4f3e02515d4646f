//! How much a tokenizer may lengthen a text before it cuts it: a chain of replacements doubles it at every step, and
//! forty of them make 2^40 bytes of one.

use data_encoding::BASE64_NOPAD;
use serde::Serialize;
use serde_json::Value as Json;
use tokenizers::Tokenizer;

/// Times that a text may grow. Published tokenizers stay below 100 (a space becomes `▁`, a letter its decomposition).
const MOST_GROWTH: f64 = 1024.0;
/// Steps of a kind. Published tokenizers have below 50.
const MOST_STEPS: usize = 256;

/// Checks normalizer, pre-tokenizer and decoder of a tokenizer.
///
/// # Errors
/// What goes too far, in words.
pub(super) fn check(tokenizer: &Tokenizer) -> Result<(), String> {
    let before = steps("normalizer", tokenizer.get_normalizer())?;
    let cutting = steps("pre-tokenizer", tokenizer.get_pre_tokenizer())?;
    let after = steps("decoder", tokenizer.get_decoder())?;
    for (what, chain) in [("normalizer and pre-tokenizer", [before, cutting].concat()), ("decoder", after)] {
        let growth: f64 = chain.iter().map(of_step).product();
        if growth > MOST_GROWTH {
            return Err(format!("its {what} may lengthen a text more than {MOST_GROWTH} times"));
        }
    }
    Ok(())
}

/// The steps of a component in order, sequences flattened.
fn steps(what: &str, component: Option<&impl Serialize>) -> Result<Vec<Json>, String> {
    let Some(component) = component else { return Ok(Vec::new()) };
    let whole = serde_json::to_value(component).map_err(|error| format!("its {what} cannot be read: {error}"))?;
    let mut waiting = vec![whole];
    let mut found = Vec::new();
    while let Some(mut step) = waiting.pop() {
        let inner = ["normalizers", "pretokenizers", "decoders"].into_iter().find(|key| step.get(key).is_some());
        match inner.map(|key| step[key].take()) {
            Some(Json::Array(list)) => waiting.extend(list.into_iter().rev()),
            _ => found.push(step),
        }
        if found.len() + waiting.len() > MOST_STEPS {
            return Err(format!("its {what} has more than {MOST_STEPS} steps"));
        }
    }
    Ok(found)
}

/// How many times a step may lengthen a text, at least 1.
fn of_step(step: &Json) -> f64 {
    let length = |key: &str| step.get(key).and_then(Json::as_str).map_or(0.0, |text| text.len() as f64);
    let factor = match step.get("type").and_then(Json::as_str).unwrap_or_default() {
        "Replace" => {
            let content = length("content");
            match step.pointer("/pattern/String").and_then(Json::as_str) {
                // an empty pattern is found between all characters
                Some("") => content + 1.0,
                Some(pattern) => content / pattern.len() as f64,
                // an expression may match nothing, or one byte
                None => content + 1.0,
            }
        }
        "Prepend" => 1.0 + length("prepend"),
        "ByteLevel" => 2.0,
        "Metaspace" => 3.0,
        "Precompiled" => of_charsmap(step.get("precompiled_charsmap")),
        _ => 1.0,
    };
    factor.max(1.0)
}

/// The longest text that a sentencepiece map puts in a character's place. After a trie, whose size the first 4 bytes
/// tell, the map holds these texts, each with a zero behind it.
fn of_charsmap(map: Option<&Json>) -> f64 {
    let bytes: Vec<u8> = match map {
        Some(Json::String(text)) => decode_base64(text),
        Some(Json::Array(list)) => list.iter().filter_map(|byte| u8::try_from(byte.as_u64()?).ok()).collect(),
        _ => return 1.0,
    };
    let Some((head, rest)) = bytes.split_first_chunk::<4>() else { return 1.0 };
    let texts = rest.get(u32::from_le_bytes(*head) as usize..).unwrap_or_default();
    texts.split(|byte| *byte == 0).map(<[u8]>::len).max().unwrap_or(1) as f64
}

/// Standard base64; what is none ends it.
fn decode_base64(text: &str) -> Vec<u8> {
    let text = text.trim_end_matches('=').as_bytes();
    BASE64_NOPAD.decode(text).unwrap_or_else(|error| BASE64_NOPAD.decode(&text[..error.position]).unwrap_or_default())
}
