//! Tests of [`Chat`](super::Chat) with tiny tokenizers written by the tests themselves.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde_json::{Value as Json, json};
use tempfile::TempDir;
use tokenizers::pre_tokenizers::byte_level::ByteLevel;

use super::*;

const CHATML: &str = "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content + '<|im_end|>\n' }}\
     {% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
const LLAMA_2: &str = "{% for m in messages %}{% if m.role == 'user' %}{{ bos_token + '[INST] ' + m.content.strip() + ' [/INST]' }}\
     {% elif m.role == 'assistant' %}{{ ' ' + m.content.strip() + ' ' + eos_token }}\
     {% else %}{{ raise_exception('no system role') }}{% endif %}{% endfor %}";

fn added(id: usize, content: &str) -> Json {
    json!({"id": id, "content": content, "single_word": false, "lstrip": false, "rstrip": false,
           "normalized": false, "special": true})
}

/// Adds `<s>` in front of every text, which a rendered prompt must not get.
fn bos_processor() -> Json {
    json!({"type": "TemplateProcessing",
        "single": [{"SpecialToken": {"id": "<s>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
        "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [0], "tokens": ["<s>"]}}})
}

fn bpe(specials: &[&str], characters: &[String], merges: &[(&str, &str)]) -> (Json, Vec<Json>) {
    let mut tokens: Vec<String> = specials.iter().map(ToString::to_string).collect();
    tokens.extend_from_slice(characters);
    tokens.extend(merges.iter().map(|(left, right)| format!("{left}{right}")));
    let vocab: serde_json::Map<String, Json> =
        tokens.iter().enumerate().map(|(id, token)| (token.clone(), json!(id))).collect();
    let merges: Vec<Json> = merges.iter().map(|pair| json!([pair.0, pair.1])).collect();
    let added = specials.iter().enumerate().map(|(id, token)| added(id, token));
    let model = json!({"type": "BPE", "dropout": 0.9, "unk_token": null, "continuing_subword_prefix": null,
        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false, "ignore_merges": false,
        "vocab": vocab, "merges": merges});
    (model, added.collect())
}

/// A byte-level tokenizer like GPT-2's, with truncation, padding and dropout that must go.
fn byte_level(merges: &[(&str, &str)], use_regex: bool) -> Json {
    let alphabet: BTreeSet<char> = ByteLevel::alphabet().into_iter().collect();
    let alphabet: Vec<String> = alphabet.iter().map(ToString::to_string).collect();
    let specials = ["<s>", "</s>", "<|im_start|>", "<|im_end|>"];
    let (model, added) = bpe(&specials, &alphabet, merges);
    let byte_level =
        json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": use_regex});
    json!({"version": "1.0",
        "truncation": {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0},
        "padding": {"strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": null, "pad_id": 0,
            "pad_type_id": 0, "pad_token": "<s>"},
        "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level, "post_processor": bos_processor(),
        "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true, "use_regex": true},
        "model": model})
}

/// A sentencepiece-like tokenizer such as Llama-2's: `▁` before the text and for every space.
fn metaspace(merges: &[(&str, &str)]) -> Json {
    let characters: Vec<String> = (' '..='~').chain("\n▁".chars()).map(|character| character.to_string()).collect();
    let (model, added) = bpe(&["<s>", "</s>"], &characters, merges);
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": added,
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": "▁"}, {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}]},
        "pre_tokenizer": null, "post_processor": bos_processor(),
        "decoder": {"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "}, {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0}]},
        "model": model})
}

fn config(template: impl Into<Json>) -> Json {
    let mut config = json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "__type": "AddedToken"},
        "pad_token": null, "chat_template": null});
    config["chat_template"] = template.into();
    config
}

fn write(folder: &Path, name: &str, value: &Json) {
    fs::write(folder.join(name), value.to_string()).expect("the test's folder is writable");
}

fn folder(tokenizer: &Json, config: &Json) -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    write(folder.path(), "tokenizer.json", tokenizer);
    write(folder.path(), "tokenizer_config.json", config);
    folder
}

fn load(folder: &TempDir) -> Result<Chat, ChatError> {
    Chat::load(&[folder.path()], ChatOptions::default())
}

fn chatml() -> Chat {
    load(&folder(&byte_level(&[("Ġ", "I")], true), &config(CHATML))).expect("loads")
}

fn llama_2() -> Chat {
    load(&folder(&metaspace(&[("▁", "I"), ("▁", "A")]), &config(LLAMA_2))).expect("loads")
}

#[test]
fn a_conversation_ends_in_what_opens_the_answer_and_its_own_system_turn_comes_first() {
    let folder = folder(&byte_level(&[("Ġ", "I")], true), &config(CHATML));
    let options = ChatOptions { system: Some("Be kind."), ..ChatOptions::default() };
    let chat = Chat::load(&[folder.path()], options).expect("loads");
    let text = |turns: &[(&str, &str)]| {
        let turns: Vec<Message> = turns.iter().map(|(role, content)| Message::new(*role, *content)).collect();
        let ids = chat.encode_conversation(&turns).expect("encodes");
        chat.decode(&ids, false).expect("decodes")
    };
    assert_eq!(
        text(&[("user", "Hi"), ("assistant", "Yes?"), ("user", "Why?")]),
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\nYes?<|im_end|>\n\
         <|im_start|>user\nWhy?<|im_end|>\n<|im_start|>assistant\n"
    );
    assert_eq!(text(&[("user", "Hi")]), text(&[("system", "Be kind."), ("user", "Hi")]));
    assert!(!text(&[("system", "Refuse."), ("user", "Hi")]).contains("Be kind."));
    let system = [Message::new("system", "Refuse."), Message::new("user", "Hi")];
    assert!(matches!(llama_2().encode_conversation(&system), Err(ChatError::TemplateRaised { .. })));
}

#[test]
fn a_prompt_has_the_specials_of_the_template_and_no_others() {
    let chat = chatml();
    let ids = chat.encode_prompt("Hi").expect("encodes");
    // The template prints no `<s>`, so there is none, though the tokenizer would add one.
    assert_eq!(ids[0], 2);
    assert!(!ids.contains(&0));
    assert_eq!(ids.iter().filter(|id| **id == 2).count(), 2);
    assert_eq!(chat.decode(&ids, false).expect("decodes"), chat.render("Hi").expect("renders"));
    assert_eq!(chat.decode(&ids, true).expect("decodes"), "user\nHi\nassistant\n");

    let chat = llama_2();
    let ids = chat.encode_prompt("Hi").expect("encodes");
    assert_eq!(chat.render("Hi").expect("renders"), "<s>[INST] Hi [/INST]");
    assert_eq!(ids.iter().filter(|id| **id == 0).count(), 1, "one `<s>`, not two: {ids:?}");
}

#[test]
fn truncation_padding_and_dropout_are_off() {
    let chat =
        load(&folder(&byte_level(&[("a", "b"), ("ab", "c"), ("abc", "d")], true), &config(CHATML))).expect("loads");
    let wanted = chat.token_to_id("abcd").expect("merged");
    for _ in 0..50 {
        assert_eq!(chat.encode("abcd abcd").expect("encodes").len(), 3);
        assert_eq!(chat.encode("abcd").expect("encodes"), [wanted]);
    }
}

#[test]
fn the_suffix_is_what_the_template_puts_after_the_instruction() {
    let chat = chatml();
    let suffix = chat.post_instruction_suffix().expect("not empty");
    assert_eq!(suffix, chat.encode("<|im_end|>\n<|im_start|>assistant\n").expect("encodes"));
    let chat = llama_2();
    let suffix = chat.post_instruction_suffix().expect("not empty");
    assert_eq!(chat.decode(&suffix, false).expect("decodes"), "[/INST]");
    assert_eq!(chat.token_label(suffix[0]), "\" \"");
    assert_eq!(suffix.len(), 8);
}

#[test]
fn a_suffix_token_that_merges_with_some_instructions_does_not_count() {
    let merges = [(".", "Ċ")];
    let template = "{% for m in messages %}{{ m.content + '\n:' }}{% endfor %}";
    let chat = load(&folder(&byte_level(&merges, false), &config(template))).expect("loads");
    let suffix = chat.post_instruction_suffix().expect("not empty");
    assert_eq!(chat.decode(&suffix, false).expect("decodes"), ":");
}

#[test]
fn a_template_that_ends_in_the_instruction_has_no_positions() {
    let template = "{% for m in messages %}{{ m.role + ': ' + m.content }}{% endfor %}";
    let chat = load(&folder(&byte_level(&[], true), &config(template))).expect("loads");
    let error = chat.post_instruction_suffix().expect_err("k = 0");
    assert!(matches!(error, ChatError::NoPostInstruction { .. }), "{error:?}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--chat-template FILE")));
}

#[test]
fn the_first_token_is_the_one_that_follows_the_prompt() {
    let chat = chatml();
    let id = |chat: &Chat, token| chat.token_to_id(token).expect("in the vocabulary");
    let first = |chat: &Chat, opening| chat.first_token_after_prompt(opening).expect("has tokens");
    assert_eq!(first(&chat, "I'm sorry"), id(&chat, "I"));
    assert_eq!(first(&chat, " I"), id(&chat, "ĠI"), "a space in the opening stays");
    assert_eq!(first(&chat, "\n"), id(&chat, "Ċ"));
    assert_eq!(first(&chat, "<|im_end|>"), 3);

    // The template shows that ` ` comes before a response, so `I` is `▁I`.
    let chat = llama_2();
    assert_eq!(first(&chat, "I"), id(&chat, "▁I"));
    assert_eq!(first(&chat, "As an AI"), id(&chat, "▁A"));
    assert_eq!(first(&chat, " I"), id(&chat, "▁I"));
    assert!(matches!(chat.first_token_after_prompt(""), Err(ChatError::EmptyOpening { .. })));

    // Prompt ends in a newline, so there is no `▁`, although the tokenizer puts one before a text.
    let tokenizer = metaspace(&[("▁", "I")]);
    let chat = load(&folder(&tokenizer, &config(CHATML))).expect("loads");
    assert_eq!(first(&chat, "I"), id(&chat, "I"));
}

#[test]
fn the_first_token_where_prompt_and_opening_merge() {
    let tokenizer = byte_level(&[("Ċ", "I"), ("Ġ", "I")], false);
    let chat = load(&folder(&tokenizer, &config(CHATML))).expect("loads");
    assert_eq!(chat.first_token_after_prompt("I").ok(), chat.token_to_id("I"));

    let template = "{% for m in messages %}{{ m.role + ':' + (' ' if m.role == 'assistant') ~ m.content + '|' }}\
         {% endfor %}{{ 'assistant:' if add_generation_prompt }}";
    let merges = [("Ġ", "I"), (":", "ĠI")];
    let chat = load(&folder(&byte_level(&merges, false), &config(template))).expect("loads");
    assert_eq!(chat.first_token_after_prompt("I").ok(), chat.token_to_id("ĠI"));
    let merges = [("▁", "I"), (":", "▁I")];
    let chat = load(&folder(&metaspace(&merges), &config(template))).expect("loads");
    assert_eq!(chat.first_token_after_prompt("I").ok(), chat.token_to_id("▁I"));
}

#[test]
fn what_comes_before_a_response_is_told() {
    assert_eq!(chatml().response_lead().as_deref(), Some(""));
    assert_eq!(llama_2().response_lead().as_deref(), Some(" "));
    let template = "{% for m in messages %}{{ m.role + ':' + ('<think></think>' if m.role == 'assistant') ~ m.content }}\
         {% endfor %}{{ 'assistant:' if add_generation_prompt }}";
    let chat = load(&folder(&byte_level(&[], true), &config(template))).expect("loads");
    assert_eq!(chat.response_lead().as_deref(), Some("<think></think>"));
    let template = "{% for m in messages if m.role == 'user' %}{{ m.content + ':' }}{% endfor %}{{ '>' if add_generation_prompt }}";
    let chat = load(&folder(&byte_level(&[], true), &config(template))).expect("loads");
    assert_eq!(chat.response_lead(), None);
}

#[test]
fn labels_can_be_read() {
    let chat = chatml();
    let label = |token| chat.token_label(chat.token_to_id(token).expect("in the vocabulary"));
    assert_eq!(label("I"), "I");
    assert_eq!(label("ĠI"), "\" I\"");
    assert_eq!(label("Ċ"), "\"\\n\"");
    assert_eq!(label("<|im_end|>"), "<|im_end|>");
    assert_eq!(label("Ã"), "Ã", "half a character stays as the vocabulary has it");
    assert_eq!(chat.token_label(99_999), "#99999");
    let chat = llama_2();
    assert_eq!(chat.token_label(chat.token_to_id("▁I").expect("in the vocabulary")), "\" I\"");
}

#[test]
fn the_template_is_found_where_transformers_finds_it() {
    let tokenizer = byte_level(&[], true);
    let render = |folder: &TempDir| {
        let chat = load(folder).expect("loads");
        (chat.render("x").expect("renders"), chat.template_origin().to_owned())
    };
    let template = |name: &str| format!("{name}{{{{ messages[0].content }}}}");

    let list = json!([{"name": "tool_use", "template": template("T")}, {"name": "default", "template": template("D")}]);
    let dir = folder(&tokenizer, &config(list));
    assert_eq!(render(&dir).0, "Dx");
    let list = json!([{"name": "rag", "template": template("R")}, {"name": "tool_use", "template": template("T")}]);
    let dir = folder(&tokenizer, &config(list));
    assert_eq!(render(&dir).0, "Rx");

    let dir = folder(&tokenizer, &config(Json::Null));
    assert!(matches!(load(&dir), Err(ChatError::TemplateMissing { .. })));
    write(dir.path(), "chat_template.json", &json!({"chat_template": template("J")}));
    assert_eq!(render(&dir).0, "Jx");
    write(dir.path(), "tokenizer_config.json", &config(template("C")));
    assert_eq!(render(&dir).0, "Cx");
    fs::write(dir.path().join("chat_template.jinja"), template("F")).expect("writable");
    let (text, origin) = render(&dir);
    assert_eq!(text, "Fx");
    assert!(origin.ends_with("chat_template.jinja`"), "{origin}");

    let over = template("O");
    let options = ChatOptions { template_override: Some(&over), ..ChatOptions::default() };
    let chat = Chat::load(&[dir.path()], options).expect("loads");
    assert_eq!(chat.render("x").expect("renders"), "Ox");
    assert_eq!(chat.template_origin(), "`--chat-template`");
}

#[test]
fn folders_are_searched_in_order_after_the_one_of_the_tokenizer() {
    let model = TempDir::new().expect("a temporary folder");
    let onnx = model.path().join("onnx");
    fs::create_dir(&onnx).expect("writable");
    write(model.path(), "tokenizer.json", &byte_level(&[], true));
    write(model.path(), "tokenizer_config.json", &config(CHATML));
    write(&onnx, "genai_config.json", &json!({"model": {"eos_token_id": [3, 1], "pad_token_id": 1}}));
    let chat = Chat::load(&[&onnx, model.path()], ChatOptions::default()).expect("loads");
    assert_eq!(chat.tokenizer_path(), model.path().join("tokenizer.json"));
    let special = SpecialIds { bos: Some(0), eos: Some(1), pad: Some(1), stop: vec![1, 3] };
    assert_eq!(chat.special_ids(), &special);
    assert_eq!(chat.vocab_size(), 4 + 256);
}

#[test]
fn special_tokens_come_from_all_files() {
    let tokenizer = byte_level(&[], true);
    let template = "{{ bos_token ~ eos_token ~ image_token ~ additional_special_tokens|join('+') ~ sep_token is defined ~ messages[0].content }}";
    let template = template.replace("sep_token is defined", "(sep_token is defined)");
    let mut settings = config(template);
    settings["extra_special_tokens"] = json!({"image_token": "<img>", "eos_token": "no"});
    settings["additional_special_tokens"] = json!(["<a>", {"content": "<b>"}]);
    let dir = folder(&tokenizer, &settings);
    write(dir.path(), "special_tokens_map.json", &json!({"bos_token": {"content": "</s>"}}));
    // Without `added_tokens_decoder` the map wins, as in transformers.
    assert_eq!(load(&dir).and_then(|chat| chat.render("x")).expect("renders"), "</s></s><img><a>+<b>Falsex");
    settings["added_tokens_decoder"] = json!({
        "260": {"content": "<new>", "special": true},
        "300": {"content": "<gap>", "special": true},
        "not an id": {"content": "<no>"},
        "2": {"content": "<other>"}
    });
    write(dir.path(), "tokenizer_config.json", &settings);
    let chat = load(&dir).expect("loads");
    assert_eq!(chat.render("x").expect("renders"), "<s></s><img><a>+<b>Falsex");
    // Tokens that only the configuration lists are added where their ids fit.
    assert_eq!(chat.encode("<new>").expect("encodes"), [260]);
    assert_eq!(chat.token_to_id("<gap>"), None);
    assert_eq!(chat.token_to_id("<|im_start|>"), Some(2));
    assert_eq!(chat.vocab_size(), 261);
}

#[test]
fn thinking_is_undefined_unless_given() {
    let template = "{{ messages[0].content }}{{ enable_thinking is defined }}{{ enable_thinking }}{{ thinking }}";
    let dir = folder(&byte_level(&[], true), &config(template));
    let render = |enable_thinking| {
        let options = ChatOptions { enable_thinking, ..ChatOptions::default() };
        Chat::load(&[dir.path()], options).and_then(|chat| chat.render("x")).expect("renders")
    };
    assert_eq!(render(None), "xFalse");
    assert_eq!(render(Some(false)), "xTrueFalseFalse");
    assert_eq!(render(Some(true)), "xTrueTrueTrue");
}

#[test]
fn the_date_can_be_given_and_is_told() {
    let template = "{{ strftime_now('%d %b %Y') }} {{ messages[0].content }}";
    let dir = folder(&byte_level(&[], true), &config(template));
    let date = Date::new(2024, 7, 26);
    let options = ChatOptions { date, ..ChatOptions::default() };
    let chat = Chat::load(&[dir.path()], options).expect("loads");
    assert_eq!(chat.render("x").expect("renders"), "26 Jul 2024 x");
    assert_eq!(chat.date(), date);
    assert!(load(&dir).expect("loads").date().is_some());
    assert_eq!(chatml().date(), None);
}

#[test]
fn a_system_prompt_is_rendered_or_refused() {
    let tokenizer = byte_level(&[], true);
    let with = |template: &str, system| {
        let dir = folder(&tokenizer, &config(template));
        let options = ChatOptions { system: Some(system), ..ChatOptions::default() };
        Chat::load(&[dir.path()], options).and_then(|chat| chat.render("Hi"))
    };
    assert_eq!(
        with(CHATML, "Be kind").expect("renders"),
        "<|im_start|>system\nBe kind<|im_end|>\n<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(with(CHATML, "").is_ok_and(|text| text.starts_with("<|im_start|>system\n<|im_end|>")));
    let error = with(LLAMA_2, "Be kind").expect_err("the template raises");
    assert!(matches!(&error, ChatError::TemplateRaised { message, .. } if message == "no system role"));
    assert!(error.hint().is_some_and(|hint| hint.contains("`--system`")));
    let silent = "{% for m in messages if m.role == 'user' %}{{ m.content }}:{% endfor %}";
    assert!(matches!(with(silent, "Be kind"), Err(ChatError::SystemIgnored { .. })));
}

#[test]
fn what_cannot_work_is_refused_with_a_hint() {
    let refused = |dir: &TempDir| load(dir).expect_err("refused");
    let empty = TempDir::new().expect("a temporary folder");
    let error = refused(&empty);
    assert!(error.to_string().starts_with("no `tokenizer.json` in `"), "{error}");
    assert!(error.hint().is_some_and(|hint| hint.contains("--tokenizer DIR")));
    fs::write(empty.path().join("tokenizer.model"), "sentencepiece").expect("writable");
    let hint = refused(&empty).hint().expect("a hint");
    assert!(hint.contains("tokenizer.model` alone is not enough"), "{hint}");
    let error = Chat::load(&[], ChatOptions::default()).expect_err("no folder");
    assert!(matches!(error, ChatError::TokenizerMissing { .. }));

    let tokenizer = byte_level(&[], true);
    let dir = folder(&json!({"model": {"type": "nope"}}), &config(CHATML));
    assert!(matches!(refused(&dir), ChatError::TokenizerInvalid { .. }));
    let mut subword = tokenizer.clone();
    subword["model"]["continuing_subword_prefix"] = json!("#####");
    subword["model"]["merges"] = json!([["a", "b"]]); // shorter than the prefix: panics inside
    let dir = folder(&subword, &config(CHATML));
    assert!(matches!(refused(&dir), ChatError::TokenizerInvalid { .. }));
    let dir = folder(&tokenizer, &json!([]));
    assert!(matches!(refused(&dir), ChatError::JsonShape { got: "a list", .. }));
    let dir = folder(&tokenizer, &config(3));
    assert!(matches!(refused(&dir), ChatError::JsonShape { got: "a number", .. }));
    let dir = folder(&tokenizer, &config(json!([])));
    assert!(matches!(refused(&dir), ChatError::JsonShape { got: "null", .. }));
    fs::write(dir.path().join("tokenizer_config.json"), "{\"a\": ").expect("writable");
    let error = refused(&dir);
    assert!(matches!(error, ChatError::Json { .. }));
    assert!(std::error::Error::source(&error).is_some());
    let dir = folder(&tokenizer, &config("{{ messages[0].role }}"));
    assert!(matches!(refused(&dir), ChatError::InstructionIgnored { .. }));
    let dir = folder(&tokenizer, &config("{% if %}"));
    assert!(matches!(refused(&dir), ChatError::TemplateSyntax { line: 1, .. }));
    let dir = folder(&tokenizer, &config(" ".repeat(1 << 20)));
    assert!(matches!(refused(&dir), ChatError::TemplateTooLong { .. }));
    fs::write(dir.path().join("chat_template.jinja"), [0xff, 0xfe]).expect("writable");
    assert!(matches!(refused(&dir), ChatError::Read { .. }));
    assert!(matches!(chatml().render(" \n"), Err(ChatError::EmptyInstruction)));
}

#[test]
fn tokenizers_that_multiply_a_text_are_refused() {
    let replace = |pattern: Json, content: &str| json!({"type": "Replace", "pattern": pattern, "content": content});
    let string = |from: &str, to: &str| replace(json!({"String": from}), to);
    let chain = |key: &str, list: Vec<Json>| json!({"type": "Sequence", key: list});
    let doubling: Vec<Json> = (0..40).map(|_| string("q", "qq")).collect();
    let mut nested = string("q", "qq");
    for _ in 0..30 {
        nested = chain("normalizers", vec![nested, string("q", "qq")]);
    }
    let split = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
    for (part, value) in [
        ("normalizer", chain("normalizers", doubling.clone())),
        ("normalizer", nested),
        ("normalizer", string("q", &"q".repeat(2000))),
        ("normalizer", chain("normalizers", vec![replace(json!({"Regex": "(?=.)"}), "a"); 40])),
        ("pre_tokenizer", chain("pretokenizers", vec![split; 40])),
        ("decoder", chain("decoders", doubling)),
        ("normalizer", chain("normalizers", vec![json!({"type": "NFC"}); 1000])),
    ] {
        let mut tokenizer = metaspace(&[]);
        tokenizer[part] = value;
        let error = load(&folder(&tokenizer, &config(CHATML))).expect_err(part);
        assert!(matches!(error, ChatError::TokenizerUnbounded { .. }), "{part}: {error:?}");
        assert!(error.hint().is_some());
    }
    // what published ones do: a space, some marks, and an expression for runs of white space
    let mut tokenizer = metaspace(&[]);
    tokenizer["normalizer"] = chain(
        "normalizers",
        vec![
            json!({"type": "Prepend", "prepend": "▁"}),
            string(" ", "▁"),
            string("``", "\""),
            replace(json!({"Regex": " {2,}"}), " "),
            json!({"type": "NFKC"}),
        ],
    );
    assert!(load(&folder(&tokenizer, &config(CHATML))).is_ok());
}

#[test]
fn a_prompt_past_any_context_is_refused() {
    let error = chatml().encode_prompt(&"a ".repeat(1 << 20)).unwrap_err();
    assert!(matches!(error, ChatError::PromptTooLong { .. }), "{error:?}");
}
