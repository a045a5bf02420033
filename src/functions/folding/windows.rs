//! Which blocks of a large table to look at next, so that a look takes milliseconds however large the table is. Pure.
//!
//! While a client holds an old snapshot, folded rows stay, and a look through all of them takes longer and longer.
//! New rows lie at the end of such a table. So a look begins at the *tail*, shortly before the end that the table had
//! when it was last looked through. What lies before the tail, such as a row whose transaction committed late, is
//! found by a *sweep*, window by window, after which the worker rests from sweeping for nineteen times as long. If a
//! sweep finds something in many windows, the room of folded rows is used again, and the next sweep follows sooner. A
//! look that took longer than [`LOOK_MAX`], for example on a busy server, makes no rest longer: how long a row may
//! wait follows from the table's size.

use std::time::Duration;

use tokio::time::Instant;

/// Number of blocks that one look reads. A table of at most this many is looked at whole.
pub(super) const WINDOW: u32 = 256;

/// Number of blocks between the tail's first block and the table's end: sessions that insert at the same time fill
/// blocks of their own.
const MARGIN: u32 = 64;

/// Length of the rest after a sweep, in multiples of the sweep: looking takes a twentieth of the time.
const REST: u32 = 19;

/// The most of a look's time that counts towards a rest.
const LOOK_MAX: Duration = Duration::from_millis(3);

/// Like [`REST`], after a sweep that found something in many windows, or that had few: then the rest is over before
/// the next nap is.
const SHORT_REST: u32 = 1;

/// One window in this many counts as many: a late row is in one window only.
const MANY: u32 = 8;

/// Up to this many windows are few.
const FEW: u32 = 2;

/// Where to look next in a large table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Windows {
    tail: u32,
    sweep: Sweep,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Sweep {
    /// The blocks before `next` have been looked at, which took `took`.
    UnderWay {
        next: u32,
        took: Duration,
        /// Number of windows in which something was found.
        found: u32,
    },
    /// The next sweep begins at `until`.
    Rests { until: Instant },
}

// === impl Sweep ===

impl Sweep {
    const BEGIN: Self = Self::UnderWay {
        next: 0,
        took: Duration::ZERO,
        found: 0,
    };
}

// === impl Windows ===

impl Windows {
    /// The windows of a table with this many blocks, at the start of a sweep; `None` if the table is looked at whole.
    pub(super) fn of(blocks: u32) -> Option<Self> {
        (blocks > WINDOW).then(|| Self {
            tail: blocks - MARGIN,
            sweep: Sweep::BEGIN,
        })
    }

    /// Where the look of each nap begins.
    pub(super) fn tail(&self) -> u32 {
        self.tail
    }

    /// Records that the table, of this many blocks, was looked through from the tail to its end.
    pub(super) fn looked_through(&mut self, blocks: u32) {
        self.tail = self.tail.max(blocks.saturating_sub(MARGIN));
    }

    /// The first block of the window to sweep now, and the first block after it; `None` during a rest.
    pub(super) fn next_window(&mut self, now: Instant) -> Option<(u32, u32)> {
        if let Sweep::Rests { until } = self.sweep
            && until <= now
        {
            self.sweep = Sweep::BEGIN;
        }
        match self.sweep {
            Sweep::UnderWay { next, .. } => Some((next, (next + WINDOW).min(self.tail))),
            Sweep::Rests { .. } => None,
        }
    }

    /// Records how long the sweep looked at its window, and whether it found something.
    pub(super) fn swept(&mut self, looked: Duration, found: bool, now: Instant) {
        if let Sweep::UnderWay {
            next,
            took,
            found: so_far,
        } = self.sweep
        {
            let (next, took) = (next + WINDOW, took + looked.min(LOOK_MAX));
            let found = so_far + u32::from(found);
            self.sweep = if next < self.tail {
                Sweep::UnderWay { next, took, found }
            } else {
                let windows = next / WINDOW;
                let is_short = found * MANY >= windows || windows <= FEW;
                let rest = if is_short { SHORT_REST } else { REST };
                Sweep::Rests {
                    until: now + took * rest,
                }
            };
        }
    }

    /// `true` if there is more to look at than one look does.
    pub(super) fn is_sweeping(&self) -> bool {
        matches!(self.sweep, Sweep::UnderWay { .. })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOK: Duration = Duration::from_millis(2);

    /// Sweeps to the end, and returns the windows and the time when the sweep ended.
    fn sweep(windows: &mut Windows, mut now: Instant) -> (Vec<(u32, u32)>, Instant) {
        let mut seen = Vec::new();
        while let Some(window) = windows.next_window(now) {
            now += LOOK;
            windows.swept(LOOK, false, now);
            seen.push(window);
        }
        (seen, now)
    }

    #[test]
    fn a_small_table_is_looked_at_whole() {
        assert_eq!(Windows::of(WINDOW), None);
        assert_eq!(Windows::of(WINDOW + 1).unwrap().tail(), WINDOW + 1 - MARGIN);
    }

    #[test]
    fn a_sweep_looks_at_each_block_before_the_tail_once() {
        for blocks in [257, 300, 576, 1_000, 80_000] {
            let mut windows = Windows::of(blocks).unwrap();
            let (seen, _) = sweep(&mut windows, Instant::now());
            assert_eq!(seen.first().unwrap().0, 0);
            assert_eq!(seen.last().unwrap().1, blocks - MARGIN);
            assert!(seen.is_sorted() && seen.windows(2).all(|two| two[0].1 == two[1].0));
            assert!(seen.iter().all(|(from, to)| to - from <= WINDOW));
        }
    }

    #[test]
    fn sweeping_takes_a_twentieth_of_the_time() {
        let (begin, mut windows) = (Instant::now(), Windows::of(80_000).unwrap());
        let (mut now, mut looks) = (begin, 0);
        while now < begin + Duration::from_secs(600) {
            let (seen, ended) = sweep(&mut windows, now);
            looks += seen.len();
            now = ended + Duration::from_millis(50);
        }
        let looked = LOOK * u32::try_from(looks).unwrap();
        assert!(looked <= (now - begin) / 19 && looked >= (now - begin) / 22);
    }

    #[test]
    fn after_finds_in_many_windows_and_in_few_windows_the_next_sweep_follows_sooner() {
        for (blocks, found) in [(FEW * WINDOW + MARGIN, false), (1_000, true)] {
            let (mut now, mut windows) = (Instant::now(), Windows::of(blocks).unwrap());
            let mut took = Duration::ZERO;
            while windows.next_window(now).is_some() {
                now += LOOK;
                took += LOOK;
                windows.swept(LOOK, found, now);
            }
            assert!(windows.next_window(now + took).is_some());
        }
    }

    #[test]
    fn a_late_row_brings_no_sweep_nearer() {
        let (mut now, mut windows) = (Instant::now(), Windows::of(80_000).unwrap());
        let mut took = Duration::ZERO;
        while let Some((from, _)) = windows.next_window(now) {
            now += LOOK;
            took += LOOK;
            windows.swept(LOOK, from == 0, now);
        }
        assert_eq!(windows.next_window(now + took * (REST - 1)), None);
        assert!(windows.next_window(now + took * REST).is_some());
    }

    #[test]
    fn a_slow_look_makes_no_rest_longer() {
        let (mut now, mut windows) = (Instant::now(), Windows::of(1_000).unwrap());
        let mut looks = 0;
        while windows.next_window(now).is_some() {
            now += Duration::from_secs(1);
            looks += 1;
            windows.swept(Duration::from_secs(1), false, now);
        }
        assert!(windows.next_window(now + LOOK_MAX * looks * REST).is_some());
    }

    #[test]
    fn the_tail_follows_the_end_and_never_goes_back() {
        let mut windows = Windows::of(1_000).unwrap();
        windows.looked_through(1_500);
        assert_eq!(windows.tail(), 1_500 - MARGIN);
        windows.looked_through(1_200);
        assert_eq!(windows.tail(), 1_500 - MARGIN);
    }
}
