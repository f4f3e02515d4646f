//! The formats, rows that are wrong, and input that means harm.

use super::*;

fn item(question: &str, choices: &[&str], answer: usize, subject: Option<&str>) -> Item {
    Item {
        question: question.into(),
        choices: choices.iter().map(ToString::to_string).collect(),
        answer,
        subject: subject.map(Into::into),
    }
}

#[track_caller]
fn reads(name: &str, text: &str, want: &[Item]) {
    assert_eq!(parse(name, text).unwrap(), want);
}

#[track_caller]
fn refused(name: &str, text: &str, words: &str) {
    let error = parse(name, text).unwrap_err();
    let message = error.to_string();
    assert!(message.contains(words), "{message}");
    assert!(error.hint().is_some());
    assert!(message.len() < 400 && !message.contains('\u{1b}'), "{message:?}");
}

#[test]
fn mmlu_as_json_lines_json_and_csv() {
    let want = [item("2+2?", &["3", "4", "5", "6"], 1, Some("maths")), item("Sky?", &["blue", "red"], 0, None)];
    let first = r#"{"question": " 2+2? ", "choices": ["3", 4, "5", "6"], "answer": 1, "subject": "maths"}"#;
    for answer in ["0", "\"A\"", "\" a \"", "\"0\""] {
        let second =
            format!(r#"{{"Question": "Sky?", "Choices": ["blue", "red"], "Answer": {answer}, "subject": null}}"#);
        reads("x/y.JSONL", &format!("\u{feff}{first}\r\n\r\n{second}\n"), &want);
        reads("y.json", &format!("[{first}, {second}]"), &want);
        reads("y.json", &format!(r#"{{"version": 1, "Data": [{first}, {second}]}}"#), &want);
    }
    let letters = r#"{"question": "2+2?", "A": "3", "B": "4", "C": "5", "D": "6", "answer": "B", "subject": "maths"}"#;
    reads("y.jsonl", letters, &want[..1]);
    let nested = r#"{"question": "2+2?", "choices": {"A": "3", "B": "4", "C": "5", "D": "6"}, "answer": "B", "subject": "maths"}"#;
    reads("y.jsonl", nested, &want[..1]);
    let headed = ",Question,A,B,C,D,Answer,Subject\n0,2+2?,3,4,5,6,B,maths\n1,Sky?,blue,red,,,A,\n";
    reads("y.csv", headed, &want);
    let json_in_csv = "question,subject,choices,answer\n2+2?,maths,\"[\"\"3\"\",\"\"4\"\",\"\"5\"\",\"\"6\"\"]\",1\n";
    reads("y.csv", json_in_csv, &want[..1]);
}

#[test]
fn the_published_mmlu_files_have_no_header() {
    let text = "\"What, then,\nis \"\"it\"\"?\",a,b,c,d,C\r\nSky?,blue,red,green,grey,a\r\n";
    let want = |subject| {
        [
            item("What, then,\nis \"it\"?", &["a", "b", "c", "d"], 2, subject),
            item("Sky?", &["blue", "red", "green", "grey"], 0, subject),
        ]
    };
    reads("items.csv", text, &want(None));
    reads("data/high_school_physics_test.csv", text, &want(Some("high_school_physics")));
}

#[test]
fn arc_in_its_forms() {
    let want = [item("Why?", &["so", "not so", "never"], 2, None)];
    let original = r#"{"id": "1", "question": {"stem": "Why?", "choices": [{"text": "so", "label": "A"},
        {"text": "not so", "label": "B"}, {"text": "never", "label": "C"}]}, "answerKey": "C"}"#;
    reads("arc.jsonl", &original.replace('\n', " "), &want);
    let hub = r#"{"question": "Why?", "choices": {"text": ["so", "not so", "never"], "label": ["1", "2", "3"]}, "answerKey": "3"}"#;
    reads("arc.jsonl", hub, &want);
    reads("arc.jsonl", &hub.replace(r#""answerKey": "3""#, r#""answerKey": 3"#), &want);
    // a letter where labels are numbers
    reads("arc.jsonl", &hub.replace(r#""answerKey": "3""#, r#""answerKey": "C""#), &want);
    let list = r#"[{"question": "Why?", "choices": [{"label": "A", "text": "so"}, {"label": "B", "text": "not so"},
        {"label": "C", "text": "never"}], "answerKey": "c"}]"#;
    reads("arc.json", list, &want);
}

#[test]
fn broken_rows_are_named_with_their_line() {
    let good = r#"{"question": "q", "choices": ["a", "b"], "answer": 0}"#;
    let second = |row: &str, words: &str| {
        refused("y.jsonl", &format!("{good}\n\n{row}\n"), &format!("line 3: {words}"));
        refused("y.json", &format!("[{good},\n\n{row}]"), &format!("item 2: {words}"));
    };
    second("5", "expected an object, got a number");
    second(r#"{"choices": ["a", "b"], "answer": 0}"#, "expected a string under `question`, got nothing");
    second(r#"{"question": {"stem": 1}, "answer": 0}"#, "expected a string under `stem`, got a number");
    second(r#"{"question": "q", "answer": 0}"#, "the answer `0` is none of the 0 choices");
    second(r#"{"question": "q", "choices": ["a", "b"]}"#, "no `answer` and no `answerKey`");
    second(r#"{"question": "q", "choices": ["a", "b"], "answer": 2}"#, "the answer `2` is none of the 2 choices");
    second(r#"{"question": "q", "choices": ["a", "b"], "answer": -1}"#, "the answer `-1` is none of the 2 choices");
    second(r#"{"question": "q", "choices": ["a", "b"], "answer": 1e300}"#, "the answer `1e+300` is none");
    second(r#"{"question": "q", "choices": ["a", "b"], "answer": "C"}"#, "the answer `C` is none of the 2 choices");
    second(r#"{"question": "q", "choices": ["a", "b"], "answer": ["A"]}"#, "expected the answer as a letter");
    second(r#"{"question": "q", "choices": ["a"], "answer": 0}"#, "expected 2 to 26 choices, got 1");
    second(r#"{"question": "q", "choices": ["a", " "], "answer": 0}"#, "choice 2 is empty");
    second(r#"{"question": "q", "choices": ["a", null], "answer": 0}"#, "expected a choice as a string, got null");
    second(r#"{"question": " ", "choices": ["a", "b"], "answer": 0}"#, "the question is empty");
    second(r#"{"question": "q", "choices": "ab", "answer": 0}"#, "expected a list of choices, got a string");
    second(
        r#"{"question": "q", "choices": ["a", "b"], "answer": 0, "subject": 3}"#,
        "expected a string under `subject`",
    );
    second(
        r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A"]}, "answer": 0}"#,
        "2 choices have 1 labels",
    );
    second(
        r#"{"question": "q", "choices": {"text": ["a", "b"], "label": ["A", "a "]}, "answer": 0}"#,
        "two choices have the label `a`",
    );
    refused("y.jsonl", &format!("{good}\n{{\"question\"\n"), "at line 2 column ");
    refused("y.json", "{\"rows\": []}", "expected a list, or an object with one under");
    refused("y.json", "3", "expected a list, or an object with one under `data` or `items`, got a number");
    refused(
        "y.csv",
        "q,a,b,A\n\nq,a,A\n",
        "line 3: expected a question, at least 2 choices and an answer, got 3 fields",
    );
    refused("y.csv", "\"q\nr\",a,b,A\nq,a,b,AB\n", "line 3: expected the answer's letter in the last field, got `AB`");
    refused("y.csv", "q,a,b,A\nq,a,b,C\n", "line 2: the answer `C` is none of the 2 choices");
    refused("y.csv", "question,A,B,answer\nq,a,b\n", "line 2: expected 4 fields as in the header, got 3");
    refused("y.csv", "question,choices,answer\nq,['a' 'b'],0\n", "line 2: expected JSON in the column of choices");
    refused("y.csv", "question,A,B,answer,note\nq,a,b,A,\nq,a,b,A,\"x\nq,a,b,A,\n", "is never closed");
}

#[test]
fn files_that_are_none_are_refused() {
    for name in ["y.json", "y.jsonl", "y.csv"] {
        refused(name, " \n", "holds no questions");
    }
    refused("y.json", "[]", "holds no questions");
    refused("y.csv", "question,A,B,answer\n", "holds no questions");
    refused("y.parquet", "", "expected the extension `json`, `jsonl` or `csv`, got `parquet`");
    refused("y", "", "got none");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("y.csv");
    std::fs::write(&path, b"q,a,b,A\nq,\xff,b,A\n").unwrap();
    assert!(load(&path).unwrap_err().to_string().contains("line 2 has a byte that is not valid"));
    assert!(matches!(load(&folder.path().join("z.csv")).unwrap_err(), ItemError::Read { .. }));
}

#[test]
fn hostile_input_is_refused_in_few_words() {
    refused("y.json", &"[".repeat(100_000), "recursion limit");
    refused("y.jsonl", &format!("{}\n", "{\"question\":".repeat(50_000)), "recursion limit");
    let many = vec!["\"x\""; 5000].join(",");
    refused("y.jsonl", &format!(r#"{{"question": "q", "choices": [{many}], "answer": 0}}"#), "got 5000");
    refused("y.csv", &format!("q,{}A\n", "x,".repeat(5000)), "expected 2 to 26 choices, got 5000");
    let steering = format!(r#"{{"question": "q", "choices": ["a", "b"], "answer": "\u001b[2J{}"}}"#, "x".repeat(9999));
    refused("y.jsonl", &steering, "the answer `\u{fffd}[2Jxxx");
    let labels = format!(r#"{{"text": ["a", "b"], "label": ["{0}", "{0}"]}}"#, "\\u001b".repeat(999));
    refused(
        "y.jsonl",
        &format!(r#"{{"question": "q", "choices": {labels}, "answer": 0}}"#),
        "two choices have the label",
    );
    refused("y.jsonl", r#"{"question": "\ud800", "choices": ["a", "b"], "answer": 0}"#, "line 1 column");
    refused("y.csv", "\0,\0,\0,\0\n", "expected the answer's letter");
    refused("y.csv", &format!("\"{}", "q,a,b,A\n".repeat(1000)), "is never closed");
}

#[test]
fn examples_are_of_the_items_subject() {
    let of = |subject: Option<&str>, n: usize| item(&format!("{subject:?} {n}"), &["a", "b"], 0, subject);
    let all: Vec<Item> = (0..3).flat_map(|n| [of(Some("x"), n), of(Some("y"), n)]).collect();
    let items = Items::new(all.clone(), None, 2).unwrap();
    assert_eq!(items.items, [of(Some("x"), 2), of(Some("y"), 2)]);
    assert_eq!(items.examples_of(&items.items[1], 1), [&of(Some("y"), 0)]);
    assert_eq!(items.examples_of(&of(Some("z"), 0), 9).len(), 4);
    let message = Items::new(all.clone(), None, 3).unwrap_err().to_string();
    assert_eq!(message, "too few questions about `x` for 3 examples: expected at least 4, got 3");
    assert_eq!(Items::new(all.clone(), None, 0).unwrap().items.len(), 6);
    let given = Items::new(all.clone(), Some(vec![of(None, 0)]), 1).unwrap();
    assert_eq!((given.items.len(), given.examples_of(&all[0], 1)), (6, vec![&of(None, 0)]));
    assert!(Items::new(all, Some(vec![of(None, 0)]), 2).is_err());
}
