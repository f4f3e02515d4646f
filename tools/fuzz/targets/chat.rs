//! Any bytes as a chat template, a `tokenizer.json`, or a `tokenizer_config.json`; the first byte says which.
#![no_main]

use lancet::chat::{Chat, ChatOptions};
use lancet_fuzz::{scratch, write};
use libfuzzer_sys::fuzz_target;

const TOKENIZER: &[u8] = include_bytes!("../../../fixtures/hostile/tiny_tokenizer.json");
const TEMPLATE: &[u8] = b"{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<a>";

fuzz_target!(|data: &[u8]| {
    let Some((kind, rest)) = data.split_first() else { return };
    let (mut tokenizer, mut template, mut config) = (TOKENIZER, TEMPLATE, &b"{}"[..]);
    match kind % 4 {
        0 | 1 => template = rest,
        2 => tokenizer = rest,
        _ => config = rest,
    }
    write("chat/tokenizer.json", tokenizer);
    write("chat/chat_template.jinja", template);
    write("chat/tokenizer_config.json", config);
    let folder = scratch().join("chat");
    let options = ChatOptions { system: (kind & 16 != 0).then_some("Be brief."), ..ChatOptions::default() };
    let Ok(chat) = Chat::load(&[&folder], options) else { return };
    let _ = (chat.post_instruction_suffix(), chat.response_lead(), chat.first_token_after_prompt("I"));
    if let Ok(ids) = chat.encode_prompt("What is this?") {
        assert!(ids.iter().all(|id| (*id as usize) < chat.vocab_size()), "an id past the vocabulary");
        let _ = chat.decode(&ids, false);
        ids.first().map(|id| chat.token_label(*id));
    }
});
