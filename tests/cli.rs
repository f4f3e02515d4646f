//! The command line from outside: exit code, stdout, stderr, and that a refused call leaves nothing behind.

mod common;

use std::fs;
use std::path::Path;

use assert_cmd::Command;
use common::{Sandbox, fixture, found, json, lancet, only, onnx_runtime, some_direction, width};
use lancet::onnx::proto::{GraphProto, ModelProto, OperatorSetIdProto, StringStringEntryProto, TensorProto};
use prost::Message;
use serde_json::Value;

/// Stdout of a call that must succeed, line ends trimmed.
fn help(arguments: &[&str]) -> String {
    let output = lancet().args(arguments).output().unwrap();
    assert!(output.status.success());
    assert!(output.stderr.is_empty());
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(str::trim_end).collect::<Vec<_>>().join("\n")
}

#[test]
fn help_is_pinned() {
    insta::assert_snapshot!(help(&["--help"]), @r#"
Calibrates refusal in chat models already exported to ONNX.

Finds the false-refusal direction (Wang et al., ICLR 2025), bakes its ablation into the weights,
proves what changed, and refuses to publish a model that lost its true refusal.

Exit codes: 0 done; 1 understood and refused, or failed; 2 usage or environment; 3 the guard refused
to publish; 130 or 143 stopped by Ctrl-C or SIGTERM.

Usage: lancet [OPTIONS] <COMMAND>

Commands:
  demo     The whole job on the bundled chat model, with a report to look at
  run      The whole job: collect, select, bake, verify, evaluate, report
  inspect  What a model is: inputs, residual stream, writers, and what would be edited or refused
           and why
  collect  Mean activations and refusal scores a class; continues where it was stopped
  select   Candidate directions, their scores, and the selected one
  compare  Methods and settings on one collection: the trade-off, and which is best within the
           policy; writes no model
  bake     The rewritten model from a direction; needs no runtime
  verify   Proves the change: bytes, leak, logits against run-time ablation
  eval     Answers, refusal rates and refusal scores of a model
  runtime  ONNX Runtime: which one is used, and installing one
  help     Print this message or the help of the given subcommand(s)

Options:
      --json
          Print the result as JSON on stdout, and nothing else there

      --config <FILE>
          TOML file with options by their long names; a flag beats it. A table named like a command
          holds for that one

  -q, --quiet
          No progress

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version
"#);
}

#[test]
fn help_of_the_settings_of_compare_is_pinned() {
    let help = help(&["compare", "--help"]);
    let (_, settings) = help.split_once("Settings:\n").unwrap();
    let (settings, _) = settings.split_once("\nMeasuring:\n").unwrap();
    insta::assert_snapshot!(settings, @r#"
      --methods <LIST>
          Whose settings are tried, comma-separated

          Possible values:
          - system-prompt: The unchanged model with a system prompt that asks it to answer what only
            looks harmful: a baseline, which no file holds
          - refusal:       The true-refusal direction itself ablated (Arditi et al. 2024): a
            baseline, which should lose true refusal
          - wang:          One direction ablated at every write (Wang et al. 2025)
          - rank:          A direction for each of some groups of pseudo-harmful prompts (`--ranks`)
          - probes:        Directions that tell pseudo-harmful from harmless prompts, one after
            another (`--ranks`)
          - sra:           The direction without what abilities have of it
          - ace:           The harmless mean's component put back
          - layers:        Only writes of layers that matter ablated
          - va:            At one layer the decision to answer made to follow the judgement of harm
          - gate:          Gated ablations at one layer, as far as the first that keeps to the
            policy

          [default: system-prompt,refusal,wang,rank,probes,sra,ace,layers,va,gate]

      --ranks <LIST>
          Numbers of groups of the method `rank`, and of probes of the method `probes`

          [default: 2]

      --lambdas <LIST>
          Lambdas of the partial orthogonalisation

          [default: 1,0.5,0]

      --strengths <LIST>
          Shares of the direction's component that are ablated, each with every lambda

          [default: 1]

      --additions <LIST>
          Factors of the true-refusal vector that is added, each with every lambda and strength; 0
          adds none

          [default: 0]

      --cross <NAME=FILE>
          A pseudo-harmful set to take the direction from and to try it on, for each pair of sets,
          with the first lambda. May be given several times

      --paper
          Exactly the published selection: no guard and no degenerate-candidate rule

      --exhaustive
          Score every candidate on every validation prompt, also those that cannot win

      --kl-threshold <KL_THRESHOLD>
          Largest mean harmless KL of a candidate

          [default: 0.2]
"#);
}

#[test]
fn help_of_run_is_pinned() {
    insta::assert_snapshot!(help(&["run", "--help"]), @r#"
The whole job: collect, select, bake, verify, evaluate, report

Usage: lancet run [OPTIONS] --output <OUT> <MODEL>

Arguments:
  <MODEL>
          An `.onnx` file, or a folder; of several models in it, `--variant` gives the direction and
          all are baked

Options:
  -o, --output <OUT>
          New folder for the model with its configs and tokenizer, or a new `.onnx` file

      --variant <NAME>
          Which model of a folder with several: its path in the folder, or its file name

      --only <GLOB>
          Bake only the models of the folder that fit this pattern (path or file name,
          `*_q4*.onnx`), and leave the others out of the output. May be given several times

      --no-sync
          Do not wait until the output is on the disk: for scratch space. After a power cut it may
          be incomplete, or not there; everything is verified all the same

      --report <FILE>
          Write the report (HTML) here too, and beside it as JSON and Markdown, also when the guard
          refuses

      --sweep <LIST>
          Measure these lambdas as well, at run time, for the trade-off in the report

      --budget <TIME>
          Leave out what does not fit into this time (`30m`, `1h 30m`), but nothing that the guard
          needs

      --json
          Print the result as JSON on stdout, and nothing else there

      --config <FILE>
          TOML file with options by their long names; a flag beats it. A table named like a command
          holds for that one

  -q, --quiet
          No progress

  -h, --help
          Print help (see a summary with '-h')

  -V, --version
          Print version

Measuring:
      --max-new-tokens <MAX_NEW_TOKENS>
          New tokens at most, an answer

          [default: 128]

      --samples <N>
          Take so many random answers a test prompt as well, beside the greedy one

          [default: 0]

      --temperature <TEMPERATURE>
          Temperature of random answers [default: what the model's config recommends, else 0.7]

      --top-p <TOP_P>
          Random answers keep the likeliest tokens that reach this probability together [default: as
          recommended, else 0.95]

      --top-k <TOP_K>
          Random answers keep so many likeliest tokens; 0 keeps all [default: as recommended, else
          0]

      --also-system <TEXT>
          Ask the test prompts once more under this system prompt

      --wrapped-prompts <N>
          Harmful test prompts that are asked inside each jailbreak wrapper; 0 tries no wrapper

          [default: 16]

      --wrappers <FILE>
          Wrappers to use instead of the built-in ones (TOML)

      --contrasts <FILE>
          Contrasts for the guard to use instead of the built-in ones: XSTest's file, or another
          whose rows are marked as safe and unsafe, or a JSON list of pairs

      --refusal-patterns <FILE>
          Refusal patterns to use instead of, or beside, the built-in ones (TOML)

      --kl-positions <K>
          Response positions at which the harmless KL is taken

          [default: 8]

      --perplexity <FILE>
          Take the perplexity on this text

      --context <N>
          Tokens a window of the perplexity [default: 512, or fewer where the model is made for
          fewer]

      --multiple-choice <FILE>
          Take the accuracy on these questions: JSONL, JSON or CSV like MMLU's or ARC's

      --shots <K>
          Solved questions before each question

          [default: 0]

      --shots-from <FILE>
          Where the solved questions come from; the first ones of the file itself if not given

      --scoring <SCORING>
          Score the choice's letter (MMLU) or its text (ARC)

          Possible values:
          - letter: The likelihood of the letter
          - text:   The likelihood of the text

          [default: letter]

      --choice-template
          Put multiple choice questions through the chat template

      --no-cost
          Do not compare file size, memory and latency

External judge:
      --judge-url <URL>
          Address of an OpenAI-compatible chat endpoint that judges the answers; the key is read
          from LANCET_JUDGE_KEY

      --judge-model <NAME>
          Its model

          [default: wildguard]

      --judge-format <FORMAT>
          How it is asked: `wildguard`, `llama-guard`, `llama-guard-prompt`, or `chat` for any chat
          model

          [default: wildguard]

      --judge-timeout <SECONDS>
          Seconds an answer of it may take

          [default: 60]

      --judge-cache <FILE>
          Keep its verdicts in this file, and ask nothing twice

Treatment:
      --weights-only
          Add no nodes: edit copies of shared tensors, and work through norms, which is not quite
          exact

      --quantised <QUANTISED>
          Quantised weights: `round` them to their own grid so that the write stays orthogonal,
          leave them and insert `nodes`, or `auto`: round, but for those where that leaves or costs
          too much

          Possible values:
          - auto:  Round, with nodes where that leaves or costs too much
          - round: Round whatever it leaves and costs; refuse what cannot be rounded
          - nodes: Leave the weights as they are and project what they write

          [default: auto]

      --max-rounding-error <RATIO>
          With `--quantised auto`: the largest error that rounding may cost, as a multiple of
          nearest rounding's, in place of the built-in limits; a weight beyond it gets nodes

Method:
      --method <METHOD>
          How the edit is found (docs/methods.md). If not given: `auto` for `run` and `demo`, `wang`
          for `select` and wherever `--lambda`, `--strength`, `--add`, `--paper`, `--exhaustive`,
          `--score` or `--sweep` pin a setting of it

          Possible values:
          - auto: Settings of wang and gate are tried on validation prompts, and the best within the
          policy is taken
          - wang: One direction is ablated at every write (Wang et al. 2025)
          - rank:K: A direction for each of K groups of pseudo-harmful prompts is ablated
          - probes:K: K directions that tell pseudo-harmful from harmless prompts, one after
          another, are ablated
          - sra: The direction loses what abilities have of it
          - ace: What is ablated is replaced by what harmless prompts have there
          - layers: Only writes of layers that matter are ablated
          - va: At one layer the decision to answer is made to follow the judgement of harm
          - gate: Refusal is taken off at one layer, where a prompt lies near known ones that only
          look harmful

          [alias: --setting]

      --lambda <LAMBDA>
          Partial orthogonalisation: 1 removes all of the true-refusal component, 0 none of it; 1 if
          not given

      --strength <STRENGTH>
          Share of the direction's component that is ablated; 1, all of it, if not given

      --add <ALPHA>
          Add the true-refusal vector too, times this factor, at the layer where it makes harmless
          prompts refused most

          [default: 0]

      --paper
          Exactly the published procedure: no guard and no degenerate-candidate rule in the
          selection

      --exhaustive
          Score every candidate on every validation prompt, also those that cannot win

      --kl-threshold <KL_THRESHOLD>
          Largest mean harmless KL of a candidate

          [default: 0.2]

      --score <SCORE>
          By what `wang` compares its candidates

          Possible values:
          - tokens: The probability of the refusal tokens at the first response position
          - cosmic: How like those of refused prompts its activations are (COSMIC): for models whose
            refusals begin like answers, with `--refusal-tokens none`

          [default: tokens]

Prompts:
      --refusal-tokens <LIST>
          First words of the model's refusals (or token ids), comma-separated: `"I,As"`; `none`
          where refusals begin like answers (see `--score`). Automatic if not given

      --prompts <DIR>
          Folder with `{harmful,pseudo_harmful,harmless}_{train,val,test}.{json,jsonl,csv,txt}`;
          without any, the bundled prompts serve

      --harmful <FILE>
          One file of harmful prompts, split by the seed

      --pseudo-harmful <FILE>
          One file of pseudo-harmful prompts

      --harmless <FILE>
          One file of harmless prompts

      --seed <SEED>
          Seed of the sampling and splitting (Python's `random.sample`, as the published code draws)

          [default: 1]

      --n-train <N_TRAIN>
          Train prompts a class

          [default: 128]

      --n-val <N_VAL>
          Validation prompts a class

          [default: 32]

      --n-test <N_TEST>
          Test prompts a class

          [default: 128]

Guard:
      --policy <FILE>
          Limits in a TOML file; a flag beats it

      --max-harmful-drop <SHARE>
          Largest drop of the harmful refusal rate, as a share (or `off`) [default: 0.02]

      --max-harmful-drop-bound <SHARE>
          Largest upper confidence bound of that drop [default: the drop's limit and 0.03]

      --max-wrapped-drop <SHARE>
          Largest drop of the harmful refusal rate inside the jailbreak wrappers, taken together
          [default: 0.03]

      --max-wrapped-drop-bound <SHARE>
          Largest upper confidence bound of that drop [default: the drop's limit and 0.04]

      --max-one-wrapper-drop <SHARE>
          Largest drop that is certain inside one wrapper alone [default: 0.05]

      --max-contrasts-drop <SHARE>
          Largest share of the unsafe contrasts that the base model refuses and the written one does
          not; `off` asks none [default: 0.05]

      --max-languages-drop <SHARE>
          The same of harmful prompts in other languages [default: 0.05]

      --max-turns-drop <SHARE>
          The same of conversations of several turns [default: 0.05]

      --max-ordered-drop <SHARE>
          The same of refusals that the system prompt or the user orders [default: 0.05]

      --max-long-drop <SHARE>
          The same of harmful prompts in long texts [default: 0.05]

      --max-harmless-kl <NATS>
          Largest mean KL on harmless prompts [default: 0.2]

      --max-perplexity-ratio <RATIO>
          Largest perplexity, as a multiple of the base's; of use with `--perplexity` [default:
          1.05]

      --max-accuracy-loss <SHARE>
          Largest loss of multiple choice accuracy; of use with `--multiple-choice` [default: 0.02]

      --max-broken-rise <SHARE>
          Largest rise of the share of empty and endlessly repeating answers [default: 0.02]

      --min-prompts <N>
          Fewest harmful prompts that a judgement may rest on [default: 52]

      --force
          Publish even if the guard refuses; the provenance says so

Chat format:
      --tokenizer <DIR>
          Folder with `tokenizer.json` and its configs, if not the model's own

      --chat-template <FILE>
          Chat template to use instead of the model's

      --system <TEXT>
          System prompt, put before every instruction

      --thinking <BOOL>
          `enable_thinking` of the template

          [possible values: true, false]

Runtime:
      --device <DEVICE>
          Execution provider

          Possible values:
          - auto: CUDA if it works, else the CPU
          - cpu:  The CPU
          - cuda: CUDA, or an error

          [default: cpu]

      --cuda-memory <GB>
          GPU memory that CUDA takes at most, in gigabytes; a run that needs more fails [default: no
          limit]

      --ort-lib <PATH>
          ONNX Runtime's shared library, or the folder that holds it

      --no-install
          Do not install ONNX Runtime if none is found

      --threads <THREADS>
          Threads of a run; 0 leaves it to ONNX Runtime

          [default: 0]

      --spin <SPIN>
          Whether threads spin while they wait for one another

          Possible values:
          - auto: Unless other work keeps a quarter of the processors busy as Lancet starts
          - on:   Always: fastest where nothing else runs
          - off:  Never: leaves the time to others

          [default: auto]

      --batch-size <BATCH_SIZE>
          Prompts a run at most; there are fewer where they are long, or where their KV caches would
          fill the memory

          [default: 32]
"#);
}

#[test]
fn version_is_the_packages() {
    assert_eq!(help(&["--version"]), format!("lancet {}", env!("CARGO_PKG_VERSION")));
    assert_eq!(help(&["run", "--version"]).split(' ').next_back(), Some(env!("CARGO_PKG_VERSION")));
}

#[test]
fn without_a_command_the_usage_is_told() {
    let output = lancet().output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(output.stdout.is_empty());
    assert!(String::from_utf8_lossy(&output.stderr).contains("Usage: lancet"));
}

// Models that are none.

#[test]
fn a_missing_model_is_refused() {
    let sandbox = Sandbox::new();
    sandbox.write_direction("d.safetensors", &[1.0]);
    for arguments in [
        &["inspect", "absent.onnx"][..],
        &["bake", "absent", "--direction", "d.safetensors", "-o", "out"],
        &["run", "absent", "-o", "out"],
        &["collect", "absent", "-o", "acts"],
        &["eval", "absent"],
    ] {
        sandbox.refused(&mut sandbox.lancet(arguments), 2, &["cannot read model `absent"]);
    }
}

#[test]
fn a_folder_without_a_model_is_refused() {
    let sandbox = Sandbox::new();
    fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.refused(&mut sandbox.lancet(&["inspect", "empty"]), 2, &["no `.onnx` file in `empty`"]);
}

/// The file is refused by every command that reads models.
#[track_caller]
fn model_is_refused(sandbox: &Sandbox, model: &str, words: &[&str]) {
    sandbox.write_direction("d.safetensors", &[1.0, 2.0]);
    sandbox.refused(&mut sandbox.lancet(&["inspect", model]), 1, words);
    sandbox.refused(&mut sandbox.lancet(&["inspect", model, "--json"]), 1, words);
    sandbox.refused(&mut sandbox.lancet(&["bake", model, "--direction", "d.safetensors", "-o", "out"]), 1, words);
    sandbox.refused(&mut sandbox.lancet(&["bake", model, "--direction", "d.safetensors", "-o", "out.onnx"]), 1, words);
    sandbox.refused(&mut sandbox.lancet(&["run", model, "-o", "out"]), 1, words);
}

#[test]
fn a_text_file_is_no_model() {
    let sandbox = Sandbox::new();
    sandbox.write("m.onnx", "This is not a model.\n");
    model_is_refused(&sandbox, "m.onnx", &["`m.onnx` is not an ONNX model"]);
}

#[test]
fn an_empty_file_is_no_model() {
    let sandbox = Sandbox::new();
    sandbox.write("m.onnx", "");
    model_is_refused(&sandbox, "m.onnx", &["`m.onnx` is not an ONNX model", "empty"]);
}

#[test]
fn half_a_model_is_truncated() {
    let sandbox = Sandbox::new();
    let whole = fs::read(fixture("chat").join("model.onnx")).unwrap();
    sandbox.write("m.onnx", &whole[..whole.len() / 2]);
    model_is_refused(&sandbox, "m.onnx", &["`m.onnx` is truncated"]);
}

/// A model with one initializer of `[4]` floats at `location`.
fn external_model(location: &str) -> Vec<u8> {
    let entry = |key: &str, value: &str| StringStringEntryProto { key: Some(key.into()), value: Some(value.into()) };
    let weight = TensorProto {
        dims: vec![4],
        data_type: Some(1),
        name: Some("the.weight".into()),
        external_data: vec![entry("location", location), entry("offset", "0"), entry("length", "16")],
        data_location: Some(1),
        ..TensorProto::default()
    };
    ModelProto {
        ir_version: Some(8),
        opset_import: vec![OperatorSetIdProto { domain: None, version: Some(17) }],
        graph: Some(GraphProto { initializer: vec![weight], ..GraphProto::default() }),
        ..ModelProto::default()
    }
    .encode_to_vec()
}

#[test]
fn missing_external_data_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("model/m.onnx", external_model("weights.bin"));
    model_is_refused(&sandbox, "model", &["weights.bin", "`the.weight`", "is missing"]);
}

#[test]
fn short_external_data_is_named() {
    let sandbox = Sandbox::new();
    sandbox.write("model/m.onnx", external_model("weights.bin"));
    sandbox.write("model/weights.bin", [0; 15]);
    model_is_refused(&sandbox, "model", &["weights.bin", "`the.weight`", "truncated"]);
}

#[test]
fn external_data_must_not_leave_the_folder() {
    let sandbox = Sandbox::new();
    sandbox.write("secret.bin", [0; 16]);
    let absolute = sandbox.path("secret.bin");
    for location in ["../secret.bin", "sub/../../secret.bin", absolute.to_str().unwrap()] {
        sandbox.write("model/m.onnx", external_model(location));
        model_is_refused(&sandbox, "model", &[location, "`the.weight`", "leaves the model's folder"]);
    }
}

#[cfg(unix)]
#[test]
fn external_data_must_not_leave_the_folder_by_a_link() {
    let sandbox = Sandbox::new();
    sandbox.write("secret.bin", [0; 16]);
    sandbox.write("model/m.onnx", external_model("weights.bin"));
    std::os::unix::fs::symlink(sandbox.path("secret.bin"), sandbox.path("model/weights.bin")).unwrap();
    model_is_refused(&sandbox, "model", &["weights.bin", "`the.weight`", "leaves the model's folder"]);
}

// Directions that are none.

#[track_caller]
fn direction_is_refused(sandbox: &Sandbox, words: &[&str]) {
    for out in ["out", "out.onnx"] {
        sandbox.refused(&mut sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", out]), 2, words);
    }
    sandbox.refused(
        &mut sandbox.lancet(&["verify", "model", "model", "--bytes-only", "--direction", "d.safetensors"]),
        2,
        words,
    );
}

#[test]
fn a_direction_of_another_width_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    let right = width("chat");
    for wrong in [right - 1, right + 1] {
        sandbox.write_direction("d.safetensors", &some_direction(wrong));
        direction_is_refused(&sandbox, &[&format!("has {wrong} elements"), &format!("d_model is {right}")]);
    }
}

#[test]
fn a_zero_direction_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &vec![0.0; width("chat")]);
    direction_is_refused(&sandbox, &["the direction is zero"]);
}

#[test]
fn a_direction_that_is_not_finite_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    for (bad, word) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (f32::NEG_INFINITY, "-inf")] {
        let mut values = some_direction(width("chat"));
        values[5] = bad;
        sandbox.write_direction("d.safetensors", &values);
        direction_is_refused(&sandbox, &["element 5 of the direction is", word]);
    }
}

#[test]
fn a_file_without_a_direction_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    let mut no_tensor = 2u64.to_le_bytes().to_vec();
    no_tensor.extend(b"{}");
    let cut = safetensors::serialize(
        [("direction", safetensors::tensor::TensorView::new(safetensors::Dtype::F32, vec![2], &[0; 8]).unwrap())],
        None,
    )
    .unwrap();
    for bytes in [
        no_tensor,
        Vec::new(),
        b"not safetensors at all".to_vec(),
        cut[..cut.len() - 1].to_vec(),
        b"\x93NUMPY".to_vec(),
    ] {
        sandbox.write("d.safetensors", bytes);
        direction_is_refused(&sandbox, &["`d.safetensors` holds no direction"]);
    }
    sandbox.write_direction("d.safetensors", &[]);
    direction_is_refused(&sandbox, &["direction is empty"]);
    fs::remove_file(sandbox.path("d.safetensors")).unwrap();
    direction_is_refused(&sandbox, &["`d.safetensors` holds no direction", "No such file"]);
}

// Tokenizer and template.

#[test]
fn a_missing_tokenizer_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    fs::remove_file(sandbox.path("model/tokenizer.json")).unwrap();
    for arguments in [&["run", "model", "-o", "out"][..], &["collect", "model", "-o", "acts"], &["eval", "model"]] {
        let stderr =
            sandbox.refused(&mut sandbox.lancet(arguments), 2, &["no `tokenizer.json` in `model`", "--tokenizer"]);
        assert!(!stderr.contains("`model`, `model`"), "a folder is named twice: {stderr}");
    }
}

#[test]
fn a_missing_template_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    let _ = fs::remove_file(sandbox.path("model/chat_template.jinja"));
    let config = sandbox.path("model/tokenizer_config.json");
    let mut value: Value = serde_json::from_slice(&fs::read(&config).unwrap()).unwrap();
    value.as_object_mut().unwrap().remove("chat_template");
    fs::write(config, value.to_string()).unwrap();
    let mut run = sandbox.lancet(&["run", "model", "-o", "out"]);
    sandbox.refused(&mut run, 2, &["no chat template in `model`", "--chat-template"]);
}

// Prompts.

/// A model with its prompts under `prompts`.
fn with_prompts() -> Sandbox {
    let sandbox = Sandbox::with_fixture("chat");
    fs::rename(sandbox.path("model/prompts"), sandbox.path("prompts")).unwrap();
    sandbox
}

fn run_with_prompts(sandbox: &Sandbox) -> Command {
    sandbox.lancet(&["run", "model", "--prompts", "prompts", "-o", "out"])
}

#[test]
fn an_empty_prompt_set_is_refused() {
    let sandbox = with_prompts();
    for text in ["[]", ""] {
        sandbox.write("prompts/harmful_train.json", text);
        sandbox.refused(&mut run_with_prompts(&sandbox), 2, &["harmful_train.json"]);
    }
    fs::remove_file(sandbox.path("prompts/harmful_train.json")).unwrap();
    sandbox.refused(&mut run_with_prompts(&sandbox), 2, &["no harmful train prompts"]);
}

#[test]
fn a_prompt_in_two_splits_is_refused() {
    let sandbox = with_prompts();
    fs::copy(sandbox.path("prompts/harmful_train.json"), sandbox.path("prompts/harmful_test.json")).unwrap();
    sandbox.refused(
        &mut run_with_prompts(&sandbox),
        2,
        &["in two splits of a class", "harmful_train.json", "harmful_test.json"],
    );
}

#[test]
fn a_prompt_in_two_classes_is_refused() {
    let sandbox = with_prompts();
    fs::copy(sandbox.path("prompts/harmful_val.json"), sandbox.path("prompts/pseudo_harmful_val.json")).unwrap();
    sandbox.refused(
        &mut run_with_prompts(&sandbox),
        2,
        &["in two classes", "harmful_val.json", "pseudo_harmful_val.json"],
    );
}

#[test]
fn too_few_prompts_after_the_filter_are_told_with_numbers() {
    onnx_runtime();
    let sandbox = with_prompts();
    let sizes = ["--n-train", "8", "--n-val", "4", "--n-test", "4", "--refusal-tokens", "zebra"];
    let mut run = run_with_prompts(&sandbox);
    sandbox.refused(run.args(sizes), 1, &["too few harmful prompts", "refuses 0 of 8", "at least 4 are needed"]);
    let mut collect = sandbox.lancet(&["collect", "model", "--prompts", "prompts", "-o", "acts"]);
    sandbox.refused(collect.args(sizes), 1, &["too few harmful prompts", "refuses 0 of 8"]);
}

// Outputs.

#[test]
fn an_output_that_exists_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &some_direction(width("chat")));
    fs::create_dir(sandbox.path("folder")).unwrap();
    sandbox.write("file.onnx", "mine");
    for out in ["folder", "file.onnx", "model", "model/model.onnx"] {
        let words = [&format!("`{out}`"), "exists already"];
        sandbox.refused(&mut sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", out]), 2, &words);
        sandbox.refused(&mut sandbox.lancet(&["run", "model", "-o", out]), 2, &words);
        sandbox.refused(&mut sandbox.lancet(&["collect", "model", "-o", out]), 2, &words);
    }
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_leaves_nothing_behind() {
    struct Mounted(std::path::PathBuf);
    impl Drop for Mounted {
        fn drop(&mut self) {
            let _ = std::process::Command::new("umount").arg(&self.0).status();
        }
    }
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &some_direction(width("chat")));
    let tiny = sandbox.path("tiny");
    fs::create_dir(&tiny).unwrap();
    let mounted =
        std::process::Command::new("mount").args(["-t", "tmpfs", "-o", "size=1m", "tmpfs"]).arg(&tiny).output();
    if !mounted.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: no tmpfs can be mounted here");
        return;
    }
    let _mounted = Mounted(tiny);
    for out in ["tiny/out", "tiny/out.onnx"] {
        let mut bake = sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", out]);
        sandbox.refused(&mut bake, 1, &["not enough room", "bytes are needed"]);
    }
}

// ONNX Runtime.

/// `run` in surroundings without any ONNX Runtime.
fn run_without_runtime(sandbox: &Sandbox) -> Command {
    for folder in ["home", "cache", "path"] {
        fs::create_dir_all(sandbox.path(folder)).unwrap();
    }
    let mut run = sandbox.lancet(&["run", "model", "-o", "out", "--no-install"]);
    run.env("HOME", sandbox.path("home"))
        .env("LANCET_CACHE", sandbox.path("cache"))
        .env("PATH", sandbox.path("path"))
        .env_remove("XDG_CACHE_HOME")
        .env_remove("ORT_DYLIB_PATH")
        .env_remove("LANCET_PYTHON")
        .env_remove("VIRTUAL_ENV")
        .env_remove("CONDA_PREFIX")
        .env_remove("LD_LIBRARY_PATH");
    run
}

#[test]
fn no_onnx_runtime_is_told_with_what_installs_it() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.refused(&mut run_without_runtime(&sandbox), 2, &["no ONNX Runtime", "lancet runtime install"]);
}

#[test]
fn a_named_library_that_is_absent_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    let absent = sandbox.path("libabsent.so");
    let mut run = run_without_runtime(&sandbox);
    let words = ["libabsent.so", "does not exist", "ORT_DYLIB_PATH"];
    sandbox.refused(run.env("ORT_DYLIB_PATH", &absent), 2, &words);
    let mut run = run_without_runtime(&sandbox);
    sandbox.refused(run.arg("--ort-lib").arg(&absent), 2, &["libabsent.so", "does not exist", "--ort-lib"]);
}

#[test]
fn a_named_library_that_is_text_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    let text = sandbox.write("libtext.so", "no library\n");
    let mut run = run_without_runtime(&sandbox);
    sandbox.refused(run.env("ORT_DYLIB_PATH", text), 2, &["cannot load ONNX Runtime", "libtext.so"]);
}

#[test]
fn cuda_without_a_cuda_build_is_refused() {
    onnx_runtime();
    let sandbox = Sandbox::with_fixture("chat");
    // the CPU build by its path: another one on this machine may have CUDA
    let library = json(&mut sandbox.lancet(&["runtime", "install", "--json"]), 0)["path"].as_str().unwrap().to_string();
    let mut run = sandbox.lancet(&["run", "model", "-o", "out", "--device", "cuda", "--ort-lib", &library]);
    sandbox.refused(&mut run, 2, &["`cuda`", "not available", "--device cpu"]);
}

// Flags and the config file.

#[test]
fn values_out_of_range_are_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    for (flag, value) in [
        ("--lambda", "2"),
        ("--lambda", "-0.1"),
        ("--lambda", "NaN"),
        ("--kl-threshold", "-1"),
        ("--n-train", "0"),
        ("--batch-size", "0"),
    ] {
        let mut run = sandbox.lancet(&["run", "model", "-o", "out"]);
        sandbox.refused_without_hint(run.arg(format!("{flag}={value}")), 2, &[flag, value, "expected a"]);
    }
}

#[test]
fn an_unknown_config_key_is_named_with_its_file() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write("lancet.toml", "nonsense = 3\n");
    let mut run = sandbox.lancet(&["run", "model", "-o", "out", "--config", "lancet.toml"]);
    sandbox.refused(&mut run, 2, &["nonsense", "lancet.toml"]);
}

#[test]
fn a_config_that_is_no_toml_or_absent_is_refused() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write("lancet.toml", "lambda = = 1\n");
    let mut run = sandbox.lancet(&["run", "model", "-o", "out", "--config", "lancet.toml"]);
    sandbox.refused_without_hint(&mut run, 2, &["`lancet.toml` is not valid TOML"]);
    let mut run = sandbox.lancet(&["run", "model", "-o", "out", "--config", "absent.toml"]);
    sandbox.refused_without_hint(&mut run, 2, &["`absent.toml`"]);
}

#[test]
fn a_flag_beats_the_config_file() {
    let sandbox = with_prompts();
    sandbox.write("lancet.toml", "ort-lib = \"from-top\"\nunused = {}\n[run]\nort_lib = \"from-table\"\n");
    let config = ["--config", "lancet.toml"];
    let mut run = run_with_prompts(&sandbox);
    sandbox.refused(run.args(config), 2, &["from-table"]);
    let mut run = run_with_prompts(&sandbox);
    sandbox.refused(run.args(config).args(["--ort-lib", "from-flag"]), 2, &["from-flag"]);
    // the config may stand before the command too, and a table of another command does not count
    sandbox.write("lancet.toml", "[eval]\nort-lib = \"from-eval\"\n[run]\nort-lib = \"from-run\"\n");
    let mut run = sandbox.lancet(&["--config", "lancet.toml", "run", "model", "--prompts", "prompts", "-o", "out"]);
    sandbox.refused(&mut run, 2, &["from-run"]);
}

// JSON.

#[test]
fn json_is_all_there_is_on_stdout() {
    let sandbox = Sandbox::with_fixture("chat");
    let d_model = width("chat");
    sandbox.write_direction("d.safetensors", &some_direction(d_model));
    let model = fs::read(sandbox.path("model/model.onnx")).unwrap();

    let inspected = json(&mut sandbox.lancet(&["inspect", "model", "--json"]), 0);
    let inspect = &only(&inspected)["inspect"];
    assert_eq!(inspect["d_model"], d_model);
    assert!(inspect["n_layers"].as_u64().is_some_and(|n| n > 0));
    assert_eq!(inspect["refusals"], serde_json::json!([]));
    let writers = inspect["writers"].as_array().unwrap();
    assert_eq!(writers.len() as u64, 2 * inspect["n_layers"].as_u64().unwrap() + 1, "{writers:?}");
    for key in ["kind", "layer", "initializer", "dtype", "shape", "treatment"] {
        assert!(writers.iter().all(|w| w.get(key).is_some()), "a writer has no `{key}`");
    }

    let bake = json(&mut sandbox.lancet(&["--json", "bake", "model", "--direction", "d.safetensors", "-o", "out"]), 0);
    let edits = only(&bake)["bake"]["edits"].as_array().unwrap();
    assert!(!edits.is_empty());
    for key in ["initializer", "treatment", "leak_before", "leak_after", "sha256_before", "sha256_after"] {
        assert!(edits.iter().all(|e| e.get(key).is_some()), "an edit has no `{key}`");
    }
    assert!(edits.iter().all(|e| e["leak_after"].as_f64().unwrap() < 1e-6));
    assert!(edits.iter().all(|e| e["sha256_before"] != e["sha256_after"]));

    let verify = ["verify", "model", "out", "--direction", "d.safetensors", "--bytes-only", "--json"];
    let verified = json(&mut sandbox.lancet(&verify), 0);
    assert_eq!(verified["shared"]["passed"], true);
    let verified = &only(&verified)["verify"];
    assert_eq!(verified["passed"], true);
    assert_eq!(verified["changed_bytes_outside_plan"], 0);
    for key in ["max_abs_logit_diff", "kl"] {
        assert!(verified[key].is_null(), "`{key}` was not measured");
    }

    // the model itself against itself is not the baked one
    let failed = json(
        &mut sandbox.lancet(&["verify", "model", "model", "--direction", "d.safetensors", "--bytes-only", "--json"]),
        1,
    );
    assert_eq!(failed["shared"]["passed"], false);
    assert!(!found(&failed, "failures").is_empty());

    // nothing beside the output, and the input as it was
    let mut names: Vec<_> = fs::read_dir(sandbox.root()).unwrap().map(|e| e.unwrap().file_name()).collect();
    names.sort();
    assert_eq!(names, ["d.safetensors", "model", "out"]);
    assert_eq!(fs::read(sandbox.path("model/model.onnx")).unwrap(), model);
}

#[test]
fn a_single_file_can_be_baked_to_a_single_file() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &some_direction(width("chat")));
    json(
        &mut sandbox.lancet(&["bake", "model/model.onnx", "--direction", "d.safetensors", "-o", "new.onnx", "--json"]),
        0,
    );
    let verify = ["verify", "model/model.onnx", "new.onnx", "--direction", "d.safetensors", "--bytes-only", "--json"];
    assert_eq!(json(&mut sandbox.lancet(&verify), 0)["shared"]["passed"], true);
    let extra: Vec<_> = fs::read_dir(sandbox.root())
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|name| !["d.safetensors", "model", "new.onnx"].contains(&name.as_str()))
        .collect();
    assert!(extra.is_empty(), "{extra:?}");
    assert!(Path::new(&sandbox.path("new.onnx")).is_file());
}

#[test]
fn without_the_sync_the_output_is_the_same() {
    let sandbox = Sandbox::with_fixture("chat");
    sandbox.write_direction("d.safetensors", &some_direction(width("chat")));
    for (out, extra) in [("synced", None), ("scratch", Some("--no-sync"))] {
        let mut bake = sandbox.lancet(&["bake", "model", "--direction", "d.safetensors", "-o", out, "--json"]);
        let result = json(bake.args(extra), 0);
        assert_eq!(result["shared"]["published"], true);
        // it is proved all the same
        assert_eq!(result["variants"][0]["verify"]["passed"], true);
        assert!(result["variants"][0]["bake"]["edits"][0]["sha256_after"].is_string());
    }
    let names = |out: &str| -> std::collections::BTreeSet<_> {
        fs::read_dir(sandbox.path(out)).unwrap().map(|entry| entry.unwrap().file_name()).collect()
    };
    assert_eq!(names("synced"), names("scratch"));
    let read = |out: &str| fs::read(sandbox.path(out).join("model.onnx")).unwrap();
    assert!(read("synced") == read("scratch"));
    for command in ["run", "bake"] {
        let text = help(&[command, "--help"]);
        assert!(text.contains("--no-sync") && text.contains("After a power cut"), "{command}");
    }
}

// The picture.

#[test]
fn inspect_draws_the_stream() {
    let sandbox = Sandbox::with_fixture("zoo/gemma2/optimum");
    sandbox.lancet(&["inspect", "model", "--graph", "stream.svg"]).assert().success();
    let svg = fs::read_to_string(sandbox.path("stream.svg")).unwrap();
    let parsed = roxmltree::Document::parse(&svg).unwrap();
    assert!(parsed.root_element().has_tag_name(("http://www.w3.org/2000/svg", "svg")));
    let texts: Vec<_> = parsed.descendants().filter(|n| n.has_tag_name("text")).filter_map(|n| n.text()).collect();
    for words in ["resid_pre.0", "resid_post.1", "attn_out", "mlp_out", "model.embed_tokens.weight", "unembedding"] {
        assert!(texts.contains(&words), "no `{words}` in {texts:?}");
    }
    assert!(texts.iter().any(|t| t.contains("post_feedforward_layernorm")), "why not by weights: {texts:?}");

    let drawn = json(&mut sandbox.lancet(&["inspect", "model", "--graph", "stream.mmd", "--json"]), 0);
    assert_eq!(only(&drawn)["inspect"]["n_layers"], 2);
    let mermaid = fs::read_to_string(sandbox.path("stream.mmd")).unwrap();
    assert!(mermaid.starts_with("flowchart"), "{mermaid}");
    assert!(mermaid.contains("resid_post.1") && mermaid.contains(":::by_nodes"), "{mermaid}");

    sandbox.refused(
        &mut sandbox.lancet(&["inspect", "model", "--graph", "stream.svg"]),
        2,
        &["`stream.svg`", "exists", "hint: "],
    );
}

#[test]
fn inspect_draws_a_refusal() {
    let sandbox = Sandbox::new();
    let mut model = ModelProto { ir_version: Some(8), ..Default::default() };
    model.opset_import.push(OperatorSetIdProto { version: Some(17), ..Default::default() });
    model.graph = Some(GraphProto::default());
    sandbox.write("nothing.onnx", model.encode_to_vec());
    for file in ["refused.svg", "refused.md"] {
        sandbox.lancet(&["inspect", "nothing.onnx", "--graph", file]).assert().code(1);
    }
    let svg = fs::read_to_string(sandbox.path("refused.svg")).unwrap();
    roxmltree::Document::parse(&svg).unwrap();
    let mermaid = fs::read_to_string(sandbox.path("refused.md")).unwrap();
    for picture in [&svg, &mermaid] {
        assert!(picture.contains("refused") && picture.contains("reason") && picture.contains("hint"), "{picture}");
    }
}
