//! Any text as a policy of the guard, as a limit on the command line, and as refusal patterns and wrappers.
#![no_main]

use lancet::eval::policy::{Policy, Setting};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(policy) = Policy::from_toml(text) {
        assert!(policy.confidence() > 0.0 && policy.confidence() < 1.0);
    }
    if let Some((key, value)) = text.split_once('=')
        && let Ok(setting) = value.parse::<Setting>()
    {
        let _ = Policy::default().set(key, setting);
    }
});
