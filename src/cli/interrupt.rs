//! Ctrl-C, SIGTERM and SIGHUP: the work is asked to stop, and a moment later the process ends, wherever it is. Folders that
//! are not yet published are removed first. The exit code is 128 and the signal's number: 130, 143, 129.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::time::Duration;

use lancet::files::abandon_all;

/// How long the work may take to stop by itself.
const PATIENCE: Duration = Duration::from_millis(700);

/// How long cleaning up may take after that; what is left then is cleaned up by the next run.
const CLEANING: Duration = Duration::from_millis(200);

/// The signal that was heard; 0 for none.
static HEARD: AtomicI32 = AtomicI32::new(0);

/// Listens for signals; the first one sets `cancelled`.
///
/// # Errors
/// If the operating system refuses.
pub fn listen(cancelled: Arc<AtomicBool>) -> io::Result<()> {
    #[cfg(unix)]
    {
        use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
        let mut signals = signal_hook::iterator::Signals::new([SIGHUP, SIGINT, SIGTERM])?;
        std::thread::Builder::new().name("signals".into()).spawn(move || {
            for signal in signals.forever() {
                heard(signal, &cancelled);
            }
        })?;
        Ok(())
    }
    #[cfg(not(unix))]
    ctrlc::set_handler(move || heard(2, &cancelled)).map_err(io::Error::other)
}

/// The exit code of a run that a signal stopped; `None` where none was heard.
pub fn exit_code() -> Option<u8> {
    match HEARD.load(Ordering::SeqCst) {
        0 => None,
        signal => u8::try_from(128 + signal).ok(),
    }
}

fn heard(signal: i32, cancelled: &AtomicBool) {
    cancelled.store(true, Ordering::SeqCst);
    // the second time, at once
    if HEARD.swap(signal, Ordering::SeqCst) != 0 {
        end(signal);
    }
    let watch = std::thread::Builder::new().name("watchdog".into()).spawn(move || {
        std::thread::sleep(PATIENCE);
        end(signal);
    });
    if watch.is_err() {
        end(signal);
    }
}

/// Ends the process without waiting for anything that runs in it.
fn end(signal: i32) -> ! {
    abandon_all(CLEANING);
    super::ui::warn("error: interrupted");
    #[cfg(unix)]
    signal_hook::low_level::exit(128 + signal);
    #[cfg(not(unix))]
    std::process::exit(128 + signal);
}
