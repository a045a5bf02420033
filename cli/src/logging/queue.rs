//! The lines of the log on their way to a reader that may stall. Then lines are lost, and nothing else waits for the reader.

use std::io::{self, Write};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, SyncSender, channel, sync_channel};
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};

/// How many bytes wait at most.
const BYTES_MAX: usize = 32 * 1024 * 1024;

/// What a line takes besides its text.
const OVERHEAD: usize = 64;

/// How long the end of the program waits for the reader.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// Where lines wait. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Queue {
    items: Sender<Item>,
    counts: Arc<Counts>,
}

#[derive(Debug)]
enum Item {
    Line(Vec<u8>),
    /// To be dropped when everything before it was written.
    Flush(#[expect(dead_code, reason = "dropping it is the answer")] SyncSender<()>),
}

#[derive(Debug, Default)]
struct Counts {
    /// The size of the lines that wait.
    bytes: AtomicUsize,
    /// The lines that were lost and not yet reported.
    lost: AtomicUsize,
}

// === impl Queue ===

impl Queue {
    /// Writes lines on a thread of its own, and reports there how many were lost.
    pub(super) fn new(
        out: impl Write + Send + 'static,
        report: impl FnMut(usize) + Send + 'static,
    ) -> io::Result<Self> {
        let (items, waiting) = channel();
        let counts = Arc::new(Counts::default());
        let queue = Self {
            items,
            counts: Arc::clone(&counts),
        };
        let thread = std::thread::Builder::new().name("log".to_owned());
        thread.spawn(move || write(out, &waiting, &counts, report))?;
        Ok(queue)
    }

    /// Waits until the lines so far were written, but not for long: the reader may have stalled.
    pub(super) fn flush_within_bounds(&self) {
        let (written, is_written) = sync_channel(0);
        let _ = self.items.send(Item::Flush(written));
        let _ = is_written.recv_timeout(FLUSH_TIMEOUT);
    }
}

impl Write for Queue {
    /// Adds a line, or counts it as lost. Never waits.
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let size = line.len() + OVERHEAD;
        let waiting = self.counts.bytes.fetch_add(size, Ordering::Relaxed);
        let fits = waiting.saturating_add(size) <= BYTES_MAX;
        if !fits || self.items.send(Item::Line(line.to_vec())).is_err() {
            self.counts.bytes.fetch_sub(size, Ordering::Relaxed);
            self.counts.lost.fetch_add(1, Ordering::Relaxed);
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Writes what arrives. A line that cannot be written is lost too: the disk may be full.
fn write(
    mut out: impl Write,
    waiting: &Receiver<Item>,
    counts: &Counts,
    mut report: impl FnMut(usize),
) {
    // At the limit of a file's size a write then fails, and the signal does not end the process.
    let _ = SigSet::from(Signal::SIGXFSZ).thread_block();
    for item in waiting {
        let Item::Line(line) = item else { continue };
        let size = line.len() + OVERHEAD;
        let left = counts.bytes.fetch_sub(size, Ordering::Relaxed) - size;
        if out.write_all(&line).is_err() {
            counts.lost.fetch_add(1, Ordering::Relaxed);
        } else if left < BYTES_MAX / 2 {
            // There is room again for the line that says so.
            let lost = counts.lost.swap(0, Ordering::Relaxed);
            if lost > 0 {
                report(lost);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A reader that takes a line whenever it is asked to.
    struct Reader(SyncSender<Vec<u8>>);

    impl Write for Reader {
        fn write(&mut self, line: &[u8]) -> io::Result<usize> {
            let sent = self.0.send(line.to_vec());
            sent.map_err(|_| io::ErrorKind::BrokenPipe)?;
            Ok(line.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    const LINE: &[u8] = &[b'x'; 1024 * 1024];

    #[test]
    fn a_reader_that_stalls_loses_lines_and_the_writer_does_not_wait() {
        let (sender, lines) = sync_channel(0);
        let (report, reported) = channel();
        let report = move |lost| report.send(lost).unwrap();
        let mut queue = Queue::new(Reader(sender), report).unwrap();
        for _ in 0..100 {
            queue.write_all(LINE).unwrap();
        }
        queue.flush_within_bounds();
        let lost = queue.counts.lost.load(Ordering::Relaxed);
        assert!((60..80).contains(&lost), "{lost}");
        // It reads on, and every line that was kept arrives.
        for _ in 0..100 - lost {
            assert_eq!(lines.recv().unwrap(), LINE);
        }
        assert_eq!(reported.recv().unwrap(), lost);
    }
}
