//! Runs a command and tells its lines as they come.

use std::io::{self, BufRead, BufReader, Read};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

/// What [`follow`] tells while a command runs.
pub(super) enum Told<'a> {
    /// A line of standard output.
    Output(&'a str),
    /// A line of standard error.
    Error(&'a str),
    /// Some time went by.
    Tick,
}

/// Runs a command to its end, or to `limit`, telling its lines as they come. It never outlives this
/// call.
pub(super) fn follow(
    mut command: Command,
    limit: Option<Duration>,
    tell: &mut dyn FnMut(Told<'_>),
) -> io::Result<ExitStatus> {
    const TICK: Duration = Duration::from_millis(150);

    struct Kill(Child);
    impl Drop for Kill {
        fn drop(&mut self) {
            // Both fail only where it has ended and been waited for already.
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }

    let child = command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut child = Kill(child);
    let start = Instant::now();
    let (sender, lines) = mpsc::channel();
    let outputs: [Option<Box<dyn Read + Send>>; 2] = [
        child.0.stdout.take().map(|stream| Box::new(stream) as _),
        child.0.stderr.take().map(|stream| Box::new(stream) as _),
    ];
    for (is_error, stream) in [false, true].into_iter().zip(outputs) {
        let stream = stream.expect("both streams were asked for as pipes");
        let sender = sender.clone();
        // Not joined: a grandchild that holds the pipe open must not hold us.
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send((is_error, line)).is_err() {
                    break;
                }
            }
        });
    }
    drop(sender);

    let mut ended: Option<(ExitStatus, Instant)> = None;
    let mut open = true;
    loop {
        let message = if open {
            lines.recv_timeout(TICK)
        } else {
            std::thread::sleep(TICK / 10);
            Err(RecvTimeoutError::Timeout)
        };
        let quiet = message.is_err();
        match message {
            Ok((false, line)) => tell(Told::Output(&line)),
            Ok((true, line)) => tell(Told::Error(&line)),
            Err(RecvTimeoutError::Timeout) => tell(Told::Tick),
            Err(RecvTimeoutError::Disconnected) => open = false,
        }
        if ended.is_none() {
            ended = child.0.try_wait()?.map(|status| (status, Instant::now()));
        }
        match ended {
            // Lines may still be under way from a pipe that has not closed.
            Some((status, at)) if !open || (quiet && at.elapsed() > 2 * TICK) => return Ok(status),
            None if limit.is_some_and(|limit| start.elapsed() > limit) => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            _ => {}
        }
    }
}

#[cfg(all(test, unix))]
pub(super) mod testing {
    //! Scripts that stand for Python.

    use std::path::{Path, PathBuf};
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Held while a script is written and run: a fork in another thread in between would keep the
    /// script open for writing, and then the system refuses to run it.
    pub fn alone() -> MutexGuard<'static, ()> {
        static SPAWNING: Mutex<()> = Mutex::new(());
        SPAWNING.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes an executable script.
    pub fn script(folder: &Path, body: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = folder.join("fake-python");
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }
}

#[cfg(all(test, unix))]
mod tests {
    use super::testing::alone;
    use super::*;

    fn shell(script: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", script]);
        command
    }

    #[test]
    fn lines_of_both_streams_arrive_and_so_does_the_status() {
        let _alone = alone();
        let (mut output, mut errors) = (Vec::new(), Vec::new());
        let status = follow(shell("echo one; echo two >&2; printf three; exit 7"), None, &mut |told| match told {
            Told::Output(line) => output.push(line.to_owned()),
            Told::Error(line) => errors.push(line.to_owned()),
            Told::Tick => {}
        })
        .unwrap();
        assert_eq!(status.code(), Some(7));
        assert_eq!((output, errors), (vec!["one".to_owned(), "three".into()], vec!["two".into()]));
    }

    #[test]
    fn a_command_past_its_limit_is_ended() {
        let _alone = alone();
        let start = Instant::now();
        let limit = Some(Duration::from_millis(200));
        let error = follow(shell("exec sleep 60"), limit, &mut |_| {}).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        assert!(start.elapsed() < Duration::from_secs(20));
    }

    #[test]
    fn a_grandchild_that_keeps_the_pipe_does_not_hold_us() {
        let _alone = alone();
        let start = Instant::now();
        let status = follow(shell("sleep 30 & echo started"), None, &mut |_| {}).unwrap();
        assert!(status.success());
        assert!(start.elapsed() < Duration::from_secs(20));
    }
}
