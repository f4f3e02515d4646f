//! What the machine has for a run: memory, and processors that nobody else uses.

use std::sync::OnceLock;
use std::thread;
use std::time::Duration;

use sysinfo::System;

/// Share of the machine's memory that the KV caches of a run may take; weights, logits and what a run computes take the
/// rest.
const CACHE_SHARE: u64 = 4;

/// Taken where the system does not tell its memory.
const UNKNOWN: u64 = 4 << 30;

/// Bytes that the KV caches of a run may take on this machine: a quarter of its memory, or of what its control group may
/// take. It does not depend on what else runs, so that the same command makes the same batches.
pub fn memory_for_caches() -> usize {
    static BYTES: OnceLock<usize> = OnceLock::new();
    *BYTES.get_or_init(|| {
        let mut system = System::new();
        system.refresh_memory();
        let limit = system.cgroup_limits().map(|limits| limits.total_memory);
        let all = [Some(system.total_memory()), limit].into_iter().flatten().filter(|bytes| *bytes > 0).min();
        usize::try_from(all.unwrap_or(UNKNOWN) / CACHE_SHARE).unwrap_or(usize::MAX)
    })
}

/// Looks at what runs on the machine, and the time between two of them.
const LOOKS: usize = 5;
const BETWEEN: Duration = Duration::from_millis(5);

/// Whether other work keeps a quarter of the processors busy just now. Threads of ONNX Runtime that wait for one another
/// spin, which is fastest where they have the machine to themselves (147 tokens a second in place of 118, two cores) and
/// takes time from everybody where they have not (57 in place of 70 to 76 with two such processes). What is computed is the
/// same. Where the system does not tell what runs (it is Linux that does), nothing does.
pub fn is_busy() -> bool {
    let look = |at: usize| {
        if at > 0 {
            thread::sleep(BETWEEN);
        }
        running(&crate::files::read_text("/proc/loadavg".as_ref(), 1 << 10).ok()?)
    };
    let Some(mut counts) = (0..LOOKS).map(look).collect::<Option<Vec<usize>>>() else { return false };
    counts.sort_unstable();
    let cores = thread::available_parallelism().map_or(1, usize::from);
    // this thread runs too
    4 * counts[LOOKS / 2].saturating_sub(1) >= cores
}

/// Threads that run or wait for a processor, by the text of `/proc/loadavg` (proc_loadavg(5)): `0.20 0.18 0.12 3/80 11206`.
fn running(loadavg: &str) -> Option<usize> {
    loadavg.split_whitespace().nth(3)?.split('/').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::running;

    #[test]
    fn what_runs_is_the_fourth_word() {
        assert_eq!(running("0.20 0.18 0.12 3/80 11206\n"), Some(3));
        assert_eq!(running(""), None);
        if cfg!(target_os = "linux") {
            let text = crate::files::read_text("/proc/loadavg".as_ref(), 1 << 10).unwrap();
            assert!(running(&text).is_some_and(|threads| threads > 0), "{text}");
        }
    }
}
