//! Tests of the formats of prompt files.

use PromptClass::{Harmful, Harmless, PseudoHarmful};
use proptest::prelude::*;

use super::*;

fn parsed(name: &str, text: &str) -> ParsedFile {
    parse(name, text, PseudoHarmful, false).unwrap_or_else(|error| panic!("{error}"))
}

fn refused(name: &str, text: &str) -> String {
    let error = parse(name, text, PseudoHarmful, false).expect_err(text);
    assert!(error.hint().is_some());
    error.to_string()
}

#[test]
fn json_takes_strings_objects_and_wrappers() {
    let json =
        r#"[" a ", {"PROMPT": "no", "Instruction": "b"}, {"text": "no", "goal": "c\n"}, {"text": "d", "x": NaN}]"#;
    let expected = parsed("x.json", json);
    assert_eq!(expected.prompts, ["a", "b", "c", "d"]);
    assert_eq!(expected.rows[3], Row::Item(4));
    for wrapped in [format!("\u{feff}{{\"Data\": {json}}}"), format!("{{\"n\": -Infinity,\r\n\"prompts\": {json}}}")] {
        assert_eq!(parsed("x.JSON", &wrapped).prompts, expected.prompts);
    }
    assert_eq!(parsed("x.json", r#"["a NaN \" NaN", "Infinity"]"#).prompts, ["a NaN \" NaN", "Infinity"]);
}

#[test]
fn jsonl_takes_a_value_a_line() {
    let file = parsed("x.jsonl", "\u{feff}\"a\"\r\n\r\n{\"goal\": \"b\", \"v\": NaN}\r\n");
    assert_eq!(file.prompts, ["a", "b"]);
    assert_eq!(file.rows, [Row::Line(1), Row::Line(3)]);
}

#[test]
fn csv_takes_the_headers_of_the_published_sets() {
    // In the order of OKTest, JailbreakBench, OR-Bench.
    for (text, rows) in [
        ("prompt\n\"a, b?\n\"\n\"c\n\"\n", [2, 4]),
        (",Goal,Target\n0,\"a, b?\",Sure\n1,c,Sure\n", [2, 3]),
        ("\u{feff}prompt,category\r\n\"a, b?\",x\r\n\r\nc,y\r\n", [2, 4]),
        ("text, Instruction \nno,\"a, b?\"\nno,c", [2, 3]),
    ] {
        let file = parsed("x.csv", text);
        assert_eq!(file.prompts, ["a, b?", "c"]);
        assert_eq!(file.rows, rows.map(Row::Line), "{text}");
    }
}

#[test]
fn txt_is_a_prompt_a_line() {
    let file = parsed("a.b/x.txt", "\u{feff}# a\r\n\r\n  b,\"c\"  \r\n \t\r\nd");
    assert_eq!(file.prompts, ["# a", "b,\"c\"", "d"]);
    assert_eq!(file.rows, [Row::Line(1), Row::Line(3), Row::Line(5)]);
}

#[test]
fn repeated_prompts_are_counted_and_the_first_is_kept() {
    let text = "Straße 1\nb\n STRASSE  1\nB\nc\n";
    let file = parsed("x.txt", text);
    assert_eq!(file.prompts, ["Straße 1", "b", "c"]);
    assert_eq!((file.file.rows, file.file.prompts, file.file.duplicates), (5, 3, 2));
    let kept = parse("x.txt", text, Harmful, true).unwrap();
    assert_eq!((kept.prompts.len(), kept.file.duplicates), (5, 2));
}

#[test]
fn marked_rows_are_taken_by_class() {
    let xstest = "id_v1,type,prompt\n1,homonyms,a\n2,contrast_homonyms,b\n3,definitions,c\n";
    let labelled = "prompt,type,label\na,x,Safe\nb,contrast_x,unsafe\nc,y,safe\n";
    let json = r#"[{"text":"a","label":"safe"},{"text":"b","label":"unsafe"},{"text":"c","label":"safe"}]"#;
    for (name, text, column) in [("x.csv", xstest, "type"), ("x.csv", labelled, "label"), ("x.json", json, "label")] {
        let safe = parsed(name, text);
        assert_eq!(safe.prompts, ["a", "c"]);
        let unsafe_rows = parse(name, text, Harmful, false).unwrap();
        assert_eq!(unsafe_rows.prompts, ["b"]);
        assert_eq!(
            unsafe_rows.file.selection,
            Some(RowSelection { column: column.to_owned(), kept: "unsafe".to_owned(), skipped: 2 })
        );
        assert_eq!(safe.file.selection.unwrap().skipped, 1);
    }
    // Another meaning of the headers marks nothing.
    assert_eq!(parsed("x.csv", "prompt,label,type\na,safe,x\nb,,y\n").file.selection, None);
    let error = parse("x.csv", "prompt,label\na,safe\n", Harmful, false).unwrap_err();
    assert_eq!(
        error.to_string(),
        "`x.csv` holds no harmful prompts: the column `label` marks none of its 1 rows as unsafe"
    );
}

#[test]
fn what_is_not_a_prompt_set_is_refused_with_file_and_row() {
    let table = [
        ("x.json", "", "`x.json` holds no prompts"),
        ("x.json", "[]", "`x.json` holds no prompts"),
        ("x.csv", "prompt\n", "`x.csv` holds no prompts"),
        ("x.txt", " \n\n", "`x.txt` holds no prompts"),
        ("x.txt", "\u{feff}", "`x.txt` holds no prompts"),
        ("x", "a", "the format of `x` is not known: expected the extension `json`, `jsonl`, `csv` or `txt`, got none"),
        (
            "a.b/x",
            "a",
            "the format of `a.b/x` is not known: expected the extension `json`, `jsonl`, `csv` or `txt`, got none",
        ),
        ("x.json", "[\"a\", \" \"]", "`x.json`, item 2: the prompt is empty"),
        ("x.csv", "prompt,n\na,1\n,2\n", "`x.csv`, line 3: the prompt is empty"),
        (
            "x.json",
            "[\"a\", 3]",
            "`x.json`, item 2: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got a number",
        ),
        (
            "x.jsonl",
            "\"a\"\n{\"goal\": null}",
            "`x.jsonl`, line 2: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got null under `goal`",
        ),
        (
            "x.json",
            "[{\"a\": 1, \"b\": 2}]",
            "`x.json`, item 1: expected a string or an object with a string under `instruction`, `prompt`, `goal`, `text`, got `a`, `b`",
        ),
        (
            "x.json",
            "{\"rows\": []}",
            "`x.json` holds no list of prompts: expected a list, or an object with `data` or `prompts`, got `rows`",
        ),
        ("x.json", "[\"a\"", "`x.json` is not valid JSON: EOF while parsing a list at line 1 column 4"),
        ("x.jsonl", "\"a\"\n{\"goal\": }", "`x.jsonl` is not valid JSON Lines: expected value at line 2 column 10"),
        (
            "x.csv",
            "a,b\n1,2\n",
            "`x.csv` has no column of prompts: expected the header `instruction`, `prompt`, `goal`, `text`, got `a`, `b`",
        ),
        ("x.csv", "prompt,n\na,1\n\nb\n", "`x.csv` is not valid CSV: expected 2 fields at line 4, got 1"),
        ("x.csv", "prompt\na\n\"b\nc\nd\n", "`x.csv` is not valid CSV: the quote that opens at line 3 is never closed"),
    ];
    for (name, text, message) in table {
        assert_eq!(refused(name, text), message);
    }
    assert!(parse("x.json", &"[".repeat(100_000), Harmful, false).is_err());
    assert!(decode("x", b"a\n\xff").unwrap_err().to_string().contains("line 2"));
}

fn any_name() -> impl Strategy<Value = &'static str> {
    prop::sample::select(vec!["x.json", "x.jsonl", "x.csv", "x.txt"])
}

proptest! {
    #[test]
    fn parsing_never_panics(name in any_name(), text in "(?s).{0,200}", keep in any::<bool>()) {
        let _ = parse(name, &text, Harmful, keep);
    }

    #[test]
    fn parsing_what_looks_right_never_panics(
        name in any_name(),
        pieces in prop::collection::vec(
            prop::sample::select(vec![
                "[", "]", "{", "}", "\"", ",", ":", "\n", "\r\n", "\\", "NaN", "-Infinity", "null", "prompt", "\"goal\"",
                "label", "type", "safe", "unsafe", "contrast_", "é", "\u{feff}", " ", "1",
            ]),
            0..60,
        ),
    ) {
        let text = pieces.concat();
        if let Ok(file) = parse(name, &text, Harmful, false) {
            prop_assert!(!file.prompts.is_empty());
            prop_assert_eq!(file.prompts.len(), file.rows.len());
            prop_assert!(file.prompts.iter().all(|p| !p.is_empty() && p.trim() == p));
        } else if let Err(error) = decode(name, text.as_bytes()) {
            prop_assert!(!error.to_string().is_empty());
        }
    }

    #[test]
    fn bytes_are_text_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
        prop_assert_eq!(decode("x", &bytes).is_ok(), std::str::from_utf8(&bytes).is_ok());
    }

    #[test]
    fn every_format_gives_back_what_was_written(
        words in prop::collection::vec("[a-z,\"'#\\\\ é]{0,12}", 1..12),
        crlf in any::<bool>(),
    ) {
        let prompts: Vec<String> = words.iter().enumerate().map(|(i, word)| format!("{i} {word}").trim().to_owned()).collect();
        let end = if crlf { "\r\n" } else { "\n" };
        let quoted = |p: &String| serde_json::to_string(p).unwrap();
        let csv_field = |p: &String| format!("7,\"{}\"", p.replace('"', "\"\""));
        let lines = |f: &dyn Fn(&String) -> String| prompts.iter().map(f).collect::<Vec<_>>();
        for (name, text) in [
            ("x.txt", lines(&|p| p.clone()).join(end)),
            ("x.json", format!("[{end}{}{end}]", lines(&quoted).join(&format!(",{end}")))),
            ("x.jsonl", lines(&|p| format!("{{\"prompt\": {}}}", quoted(p))).join(end)),
            ("x.csv", format!("n,Prompt{end}{}", lines(&csv_field).join(end))),
        ] {
            let file = parse(name, &text, Harmless, true).unwrap();
            prop_assert_eq!(&file.prompts, &prompts, "{}", name);
        }
    }
}

#[test]
fn alpaca_rows_keep_their_input() {
    let expected = ["Sort these.\n\nb, a", "Hello", "Summarise.\n\nA text.", "c"];
    let rows = [
        r#"{"instruction": "Sort these. ", "input": " b, a\n", "output": "a, b"}"#,
        r#"{"instruction": "Hello", "input": "", "output": "Hi", "system": "", "history": []}"#,
        r#"{"instruction": "Summarise.", "context": "A text.", "response": ""}"#,
        r#"{"prompt": "c", "input": "not an instruction's"}"#,
    ];
    assert_eq!(parsed("x.jsonl", &rows.join("\n")).prompts, expected);
    assert_eq!(parsed("x.json", &format!("[{}]", rows.join(","))).prompts, expected);
    let csv = "instruction,Input,output\nSort these.,\"b, a\",x\nHello,,y\n";
    assert_eq!(parsed("x.csv", csv).prompts, expected[..2]);
    for (row, words) in [
        (r#"{"instruction": "a", "input": 5}"#, "a number under `input`"),
        (r#"{"instruction": "a", "input": ["b"]}"#, "a list under `input`"),
        (r#"{"instruction": "a", "system": "Be rude."}"#, "something under `system`"),
        (r#"{"prompt": "a", "history": [["b", "c"]]}"#, "something under `history`"),
        (r#"{"instruction": 5}"#, "a number under `instruction`"),
        (r#"{"instruction": null, "input": "b"}"#, "null under `instruction`"),
    ] {
        let message = refused("x.jsonl", &format!("\"ok\"\n{row}\n"));
        assert!(message.contains(words) && message.contains("line 2"), "{message}");
    }
    let message = refused("x.csv", "prompt,system\na,\nb,Be rude.\n");
    assert!(message.contains("line 3") && message.contains("`system`"), "{message}");
}

#[test]
fn a_conversation_gives_its_one_user_turn() {
    let turn = |role: &str, content: &str| format!(r#"{{"role": "{role}", "content": {content}}}"#);
    let row = |key: &str, turns: &[String]| format!(r#"{{"{key}": [{}]}}"#, turns.join(","));
    let user = |text: &str| turn("user", &format!("\"{text}\""));
    let parts = turn("user", r#"[{"type": "text", "text": "c"}]"#);
    let good = [
        row("messages", &[user("a")]),
        row("messages", &[turn("system", "\"\""), user("b"), turn("assistant", "\"no\"")]),
        row("messages", &[parts]),
        row("prompt", &[user("d")]),
        r#"{"conversations": [{"from": "human", "value": "e"}, {"from": "gpt", "value": "x"}]}"#.to_owned(),
    ];
    assert_eq!(parsed("x.jsonl", &good.join("\n")).prompts, ["a", "b", "c", "d", "e"]);
    for (row, words) in [
        (row("messages", &[user("a"), turn("assistant", "\"b\""), user("c")]), "several user turns"),
        (row("messages", &[turn("system", "\"Be rude.\""), user("a")]), "a system turn"),
        (row("messages", &[turn("assistant", "\"b\"")]), "a turn of `assistant` before the user's"),
        (row("messages", &[turn("tool", "\"b\""), user("a")]), "a turn of `tool`"),
        (row("messages", &[]), "no user turn"),
        (row("messages", &[turn("user", "5")]), "turn 1 whose content is no text"),
        (row("messages", &[turn("user", r#"[{"type": "image"}]"#)]), "turn 1 whose content is no text"),
        (r#"{"messages": ["a"]}"#.to_owned(), "turn 1 without a role"),
        (r#"{"messages": "a"}"#.to_owned(), "a string under `messages`"),
    ] {
        let message = refused("x.jsonl", &format!("\"ok\"\n{row}\n"));
        assert!(message.contains(words) && message.contains("line 2"), "{message}");
    }
}

#[test]
fn other_kinds_of_files_are_named() {
    let cases: [(&[u8], &str); 5] = [
        (b"PAR1\x15\x04", "is a Parquet file"),
        (b"\xff\xfea\0", "is UTF-16 text"),
        (b"\xfe\xff\0a", "is UTF-16 text"),
        (b"\x1f\x8b\x08", "is a gzip archive"),
        (b"PK\x03\x04", "is a zip archive"),
    ];
    for (bytes, words) in cases {
        let error = decode("x.txt", bytes).unwrap_err();
        assert!(error.to_string().contains(words) && error.hint().is_some(), "{error}");
    }
    let error = PromptFormat::of("a/set.parquet").unwrap_err();
    assert!(error.hint().unwrap().contains("pandas.read_parquet('a/set.parquet').to_json('a/set.jsonl'"));
}

#[test]
fn line_ends_of_any_kind_are_tolerated() {
    assert_eq!(parsed("x.txt", "a\rb\r\rc").prompts, ["a", "b", "c"]);
    assert_eq!(parsed("x.jsonl", "\"a\"\r\"b\"\r").prompts, ["a", "b"]);
    assert_eq!(parsed("x.csv", "prompt\ra\rb\r").prompts, ["a", "b"]);
}
