//! Files that are made to break what reads them (`fixtures/hostile`): each ends in time and within its memory, with the
//! exit code and the words that `expected.json` tells, without a panic, and steers no terminal.

mod common;

use std::io::Read;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use common::{Sandbox, fixture};
use serde::Deserialize;

/// How long a file may take. All of them take below a second on an idle machine, but for a template that is stopped.
const LONGEST: Duration = Duration::from_secs(20);

/// Address space of the process, in KiB, where the shell can limit it.
const MOST_KIB: u64 = 6 << 20;

/// How a file is given to Lancet.
#[derive(Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[serde(rename_all = "snake_case")]
enum Kind {
    Model,
    Direction,
    Template,
    Tokenizer,
    Prompt,
    Policy,
    Config,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    file: String,
    kind: Kind,
    exit: Vec<i32>,
    words: Vec<String>,
    /// The width of a direction that fits, where a bake works.
    #[serde(default)]
    width: Option<usize>,
}

fn entries() -> Vec<Entry> {
    serde_json::from_slice(&std::fs::read(fixture("hostile/expected.json")).unwrap()).unwrap()
}

/// The commands that read the file.
fn commands(entry: &Entry, sandbox: &Sandbox) -> Vec<Vec<String>> {
    let file = fixture(&format!("hostile/{}", entry.file)).display().to_string();
    let chat = fixture("chat/model.onnx").display().to_string();
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let model = |config: Option<&str>| {
        let onnx = if config.is_some() { fixture("hostile/models/plain.onnx") } else { file.clone().into() };
        sandbox.write("m/model.onnx", std::fs::read(onnx).unwrap());
        if let Some(config) = config {
            sandbox.write("m/config.json", std::fs::read(config).unwrap());
        }
        sandbox.write_direction("d.safetensors", &vec![1.0; entry.width.unwrap_or(4)]);
        let bake = ["bake", "m/model.onnx", "--direction", "d.safetensors", "-o", "out.onnx"];
        let again = words(&["inspect", "out.onnx"]);
        vec![words(&["inspect", "m"]), words(&["inspect", "m/model.onnx", "--json"]), words(&bake), again]
    };
    match entry.kind {
        Kind::Model => model(None),
        Kind::Config => model(Some(&file)),
        Kind::Direction => vec![words(&["bake", &chat, "--direction", &file, "-o", "out"])],
        Kind::Template => vec![words(&["eval", &chat, "--chat-template", &file])],
        Kind::Tokenizer => {
            sandbox.write("t/tokenizer.json", std::fs::read(&file).unwrap());
            vec![words(&["eval", &chat, "--tokenizer", "t"])]
        }
        Kind::Prompt => {
            let set = ["--harmful", &file, "--pseudo-harmful", &file, "--harmless", &file];
            vec![[&words(&["eval", &chat])[..], &words(&set)].concat()]
        }
        Kind::Policy => vec![words(&["run", &chat, "-o", "out", "--policy", &file])],
    }
}

/// The binary with a limit on its memory.
fn limited(sandbox: &Sandbox, arguments: &[String]) -> Command {
    let plain = sandbox.lancet(&[]);
    let mut command = if cfg!(target_os = "linux") {
        let mut shell = Command::new("sh");
        shell.args(["-c", &format!("ulimit -v {MOST_KIB}; exec \"$0\" \"$@\"")]).arg(plain.get_program());
        shell
    } else {
        Command::new(plain.get_program())
    };
    for (key, value) in plain.get_envs() {
        match value {
            Some(value) => command.env(key, value),
            None => command.env_remove(key),
        };
    }
    command.current_dir(sandbox.root()).args(arguments).stdin(Stdio::null());
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What a process wrote, once it ended; nothing if it did not in time.
fn finish(mut child: Child) -> Option<(Option<i32>, String, String)> {
    let mut pipes = (child.stdout.take().unwrap(), child.stderr.take().unwrap());
    let out = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipes.0.read_to_end(&mut bytes).map(|_| bytes)
    });
    let err = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        pipes.1.read_to_end(&mut bytes).map(|_| bytes)
    });
    let began = Instant::now();
    let status = loop {
        match child.try_wait().unwrap() {
            Some(status) => break status,
            None if began.elapsed() > LONGEST => {
                child.kill().unwrap();
                child.wait().unwrap();
                return None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    let text = |bytes: std::io::Result<Vec<u8>>| String::from_utf8_lossy(&bytes.unwrap()).into_owned();
    Some((status.code(), text(out.join().unwrap()), text(err.join().unwrap())))
}

/// What is wrong with how Lancet took a file; nothing where all is right.
fn judge(entry: &Entry) -> Vec<String> {
    let sandbox = Sandbox::new();
    let mut wrong = Vec::new();
    let mut said = String::new();
    for arguments in commands(entry, &sandbox) {
        // what was baked is understood again
        if arguments[1] == "out.onnx" && !sandbox.path("out.onnx").exists() {
            continue;
        }
        let name = format!("{} ({})", entry.file, arguments[0]);
        let Some((code, out, err)) = finish(limited(&sandbox, &arguments).spawn().unwrap()) else {
            wrong.push(format!("{name}: not done after {} s", LONGEST.as_secs()));
            continue;
        };
        if !code.is_some_and(|code| entry.exit.contains(&code)) {
            wrong.push(format!("{name}: exit code {code:?}, expected {:?}\n{out}{err}", entry.exit));
        }
        if err.contains("panicked") || err.contains("memory allocation") {
            wrong.push(format!("{name}: {err}"));
        }
        let steers = |c: char| c != '\n' && (c.is_control() || ('\u{202a}'..='\u{202e}').contains(&c));
        if let Some(c) = out.chars().chain(err.chars()).find(|c| steers(*c)) {
            wrong.push(format!("{name}: a raw {c:?} was printed\n{err:?}"));
        }
        if err.lines().any(|line| line.starts_with("error: forged")) {
            wrong.push(format!("{name}: a forged line was printed\n{err}"));
        }
        if code.is_some_and(|code| code != 0) && arguments[0] == "bake" && Path::new(&sandbox.path("out.onnx")).exists()
        {
            wrong.push(format!("{name}: a failed bake left an output"));
        }
        said.push_str(&err);
        said.push_str(&out);
    }
    let missing = entry.words.iter().filter(|word| !said.contains(*word));
    wrong.extend(missing.map(|word| format!("{}: `{word}` is not said\n{said}", entry.file)));
    wrong
}

#[test]
#[cfg_attr(debug_assertions, ignore = "slow: `cargo test --release`, or `-- --include-ignored`")]
fn hostile_files_end_in_plain_words() {
    let only = std::env::var("LANCET_HOSTILE").unwrap_or_default();
    let mut wrong = Vec::new();
    for entry in entries().iter().filter(|entry| entry.file.contains(&only)) {
        wrong.extend(judge(entry));
    }
    assert!(wrong.is_empty(), "{} things are wrong:\n{}", wrong.len(), wrong.join("\n"));
}

/// What is no plain file: a pipe that nobody writes to, a device without an end, a folder, and a file past its limit.
#[cfg(unix)]
#[test]
fn what_is_no_file_is_refused_at_once() {
    let chat = fixture("chat/model.onnx").display().to_string();
    let set = |what: &'static str| {
        let mut words = vec!["eval", &chat, "--harmful", what, "--pseudo-harmful", what, "--harmless", what];
        words.push("--quiet");
        words.into_iter().map(str::to_owned).collect::<Vec<String>>()
    };
    let words = |list: &[&str]| list.iter().map(|word| (*word).to_owned()).collect::<Vec<String>>();
    let sandbox = Sandbox::new();
    for name in ["pipe.txt", "t/tokenizer.json"] {
        sandbox.write(&format!("{name}.x"), "");
        assert!(Command::new("mkfifo").arg(sandbox.path(name)).status().unwrap().success());
    }
    std::os::unix::fs::symlink("/dev/zero", sandbox.path("zero.txt")).unwrap();
    std::fs::create_dir(sandbox.path("folder.txt")).unwrap();
    std::fs::File::create(sandbox.path("large.txt")).unwrap().set_len(1 << 40).unwrap();
    for name in ["pipe.txt", "zero.txt", "folder.txt", "large.txt"] {
        for arguments in [
            words(&["bake", &chat, "--direction", name, "-o", "out"]),
            words(&["eval", &chat, "--chat-template", name]),
            words(&["run", &chat, "-o", "out", "--policy", name]),
            words(&["--config", name, "inspect", &chat]),
            set(match name {
                "pipe.txt" => "pipe.txt",
                "zero.txt" => "zero.txt",
                "folder.txt" => "folder.txt",
                _ => "large.txt",
            }),
        ] {
            let done = finish(limited(&sandbox, &arguments).spawn().unwrap());
            let (code, _, err) = done.unwrap_or_else(|| panic!("{arguments:?} hangs"));
            assert_eq!(code, Some(2), "{arguments:?}: {err}");
            assert!(err.contains(name) && !err.contains("panicked"), "{arguments:?}: {err}");
        }
    }
    let arguments = words(&["eval", &chat, "--tokenizer", "t"]);
    let (code, _, err) =
        finish(limited(&sandbox, &arguments).spawn().unwrap()).expect("a tokenizer that is a pipe hangs");
    assert!(code == Some(2) && err.contains("tokenizer.json"), "{err}");
}
